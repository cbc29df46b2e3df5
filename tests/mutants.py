"""Change refnet/ops at one place at a time and see whether a test fails; the changes are cosmic-ray's.

python tests/mutants.py COUNT [SEED] tries a sample of all changes, in a copy of the project, and prints what survives.
A change that refnet cannot be imported with tells nothing of the tests and is left out. Its own test file is run first,
then everything that checks operations. Status 1 where fewer than 95 in 100 are found.
"""

import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
FLOOR = 0.95
REST = ("tests/ops", "tests/test_net.py", "tests/test_parallel.py")
CPU_SECONDS, SECONDS = 120, 1800  # a child's limits; the tests take 20, and a machine may stand still for a while
MEMORY = 8 << 30
NO_MUTANT, FOUND = 100, 101  # exit statuses of a child


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the place of this number that an operator of cosmic-ray's finds."""

    file: Path
    operator: type
    number: int

    @cached_property
    def code(self) -> str:
        """The file with the change."""
        return mutate_code(self.file.read_text(), self.operator(), self.number)

    def __str__(self) -> str:
        pairs = zip(self.file.read_text().splitlines(), self.code.splitlines(), strict=False)
        line, before, after = next((line, *pair) for line, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        return f"{self.file}:{line}: {before.strip()}  ->  {after.strip()}"


def mutants() -> list[Mutant]:
    """Every change of refnet/ops that cosmic-ray has an operator for."""
    found = []
    operators = [cosmic_ray.plugins.get_operator(name) for name in cosmic_ray.plugins.operator_names()]
    for file in sorted(Path("refnet/ops").glob("[a-z]*.py")):
        nodes = list(ast_nodes(get_ast(file.read_text())))
        for operator in (each for each in operators if not each.arguments()):
            count = sum(1 for node in nodes for _ in operator().mutation_positions(node))
            found += [Mutant(file, operator, number) for number in range(count)]
    return found


def verdict(copy: Path, *tests: str) -> str:
    """What the tests say of the project as it is now: survived, found, looped, or no mutant."""
    child = multiprocessing.get_context("fork").Process(target=_test, args=(copy, tests))
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
        return "looped"
    named = {0: "survived", NO_MUTANT: "no mutant", -24: "looped", -9: "looped"}  # 24: out of CPU time
    return named.get(child.exitcode, "found")


def _test(copy: Path, tests: tuple[str, ...]) -> None:
    """In a child: import refnet, run the tests, and exit with what came of it."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    try:
        import refnet.ops  # noqa: F401
    except BaseException:
        os._exit(NO_MUTANT)
    os._exit(0 if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]) == 0 else FOUND)


def try_one(copy: Path, mutant: Mutant) -> str:
    """Put the mutant into the copy, test it, and put the original back."""
    own = sorted(str(path) for path in Path("tests/ops").glob(f"test_*{mutant.file.stem}.py"))
    (copy / mutant.file).write_text(mutant.code)
    try:
        first = verdict(copy, *own)
        return first if first != "survived" else verdict(copy, *REST)
    finally:
        shutil.copy(mutant.file, copy / mutant.file)


def main() -> None:
    """Sample, try, and tell."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    sys.dont_write_bytecode = True  # two changes within a second could be taken for each other
    os.chdir(ROOT)
    every, seen, verdicts, tried = mutants(), set(), Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("refnet", "tests", "tools"):
            shutil.copytree(part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy("pyproject.toml", copy)
        if (unchanged := verdict(copy, *REST)) != "survived":
            sys.exit(f"mutants.py: the tests must pass before anything is changed; now: {unchanged}")
        for mutant in random.Random(seed).sample(every, len(every)):
            if tried == count:
                break
            if mutant.code in seen:  # two operators may make the same change
                continue
            seen.add(mutant.code)
            outcome = try_one(copy, mutant)
            verdicts[outcome] += 1
            tried += outcome != "no mutant"
            if outcome in ("survived", "looped"):
                print(f"{outcome} {mutant}", flush=True)
            if sum(verdicts.values()) % 50 == 0:
                print(dict(verdicts), file=sys.stderr, flush=True)
    share = 1 - verdicts["survived"] / tried
    print(f"{tried} of {len(every)} mutants, {verdicts['no mutant']} more could not be imported;")
    print(f"{verdicts['survived']} survived, {verdicts['looped']} looped: {share:.1%} found")
    sys.exit(share < FLOOR)


if __name__ == "__main__":
    main()
