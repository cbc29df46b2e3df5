"""Fuzz the readers of strangers' files, guided by the branches of refnet's that an input reaches (atheris, libFuzzer).

python tests/fuzz.py SECONDS [READER ...] fuzzes each for so long, beginning with good files, and prints a line: inputs
tried, branches reached by the good files and at the end, and what went wrong. An input must be read, or refused with
ValueError or OSError in one line, within 5 seconds and 2 GB. Status 1 where one was not, which is kept in out/fuzz.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import atheris
import h5py

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

INSTRUMENTED = ["refnet.arch", "refnet.hdf5", "refnet.interop", "refnet.weights"]
with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=INSTRUMENTED):  # it would name each
    from refnet import hdf5, models, weights
    from refnet.arch import Arch
    from refnet.hdf5 import Content
    from refnet.interop import caffe, keras, pytorch

    # isort: split
    from conftest import oracle
    from fixtures import FORKED, OBLONG, checkpoint_of
    from test_interop import PROTOTXT, written

LONGEST = 4000  # characters of a message
KEPT = ROOT / "out" / "fuzz"
Reader = tuple[Callable[[bytes], object], list[bytes]]  # what takes the bytes of a file, and good ones


def arch(_: Path) -> Reader:
    """The architecture in a weight file: one that is accepted comes back from its own JSON."""

    def read(data: bytes) -> None:
        found = Arch.from_json(data.decode(errors="replace"))
        assert Arch.from_json(found.to_json()) == found

    return read, [each.to_json().encode() for each in (*models.MODELS.values(), FORKED, OBLONG)]


def attributes(_: Path) -> Reader:
    """The attributes of a weight file, whose arrays are good: accepted, they make a checkpoint."""
    good = weights._pack(checkpoint_of(), None)
    good.attributes["/"]["sha256"] = ""

    def read(data: bytes) -> None:
        said = as_json(data)
        if isinstance(said, dict) and all(isinstance(each, dict) for each in said.values()):
            content = Content({"/": {}, **said}, good.datasets)
            with weights._naming("a.h5"):
                weights._check_file(content)
                weights._unpack(Arch.from_json(content.attributes["/"]["arch"]), content)

    return read, [json.dumps(good.attributes).encode()]


def as_json(data: bytes) -> object:
    """The value; None for what is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def whole(kind: str) -> Callable[[Path], Reader]:
    """A file of another framework's."""

    def made(folder: Path) -> Reader:
        path, read = written(kind, folder)
        return on_disk(path, read), [path.read_bytes()]

    return made


def on_disk(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Read the bytes as a file."""

    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return read_bytes


def prototxt(folder: Path) -> Reader:
    """The text beside a .caffemodel."""
    path, _ = written("caffemodel", folder)
    return on_disk(path.with_suffix(".prototxt"), lambda _: caffe.read(path)), [
        PROTOTXT.encode(),
        b'layer { name: "data" type: "Input" input_param { shape: { dim: 1 dim: 3 dim: 19 dim: 19 } } }',
    ]


def pickled(folder: Path) -> Reader:
    """The pickle in PyTorch's archive, whose storages stay as they are whatever it says."""
    torch, path = oracle("torch"), folder / "a.pt"
    torch.save({"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        rest = {name: archive.read(name) for name in archive.namelist()}
    name = next(each for each in rest if each.endswith("data.pkl"))
    good = rest.pop(name)

    def read(data: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for each, content in {name: data, **rest}.items():
                archive.writestr(each, content)
        pytorch._pickled(path)

    return read, [good]


def config(folder: Path) -> Reader:
    """The architecture in a file of Keras's, whose arrays are good; libhdf5 itself is tests/test_reliability.py's."""
    path, _ = written("h5", folder)
    with h5py.File(path) as file:
        good, arrays = file.attrs["model_config"], keras._by_layer(file["model_weights"], hdf5.datasets(file))

    def read(data: bytes) -> None:
        with keras._damage():
            keras._network(as_json(data), arrays, None)

    return read, [good.encode() if isinstance(good, str) else good]


READERS = {
    "arch": arch, "attributes": attributes, "onnx": whole("onnx"), "safetensors": whole("safetensors"),
    "caffemodel": whole("caffemodel"), "prototxt": prototxt, "pickle": pickled, "keras": config,
}  # fmt: skip


def fuzz(name: str, seconds: str, folder: Path) -> None:
    """In a process of its own, which libFuzzer ends: try inputs for so long, and print each failing line once."""
    read, seeds = READERS[name](folder)
    corpus, seen = folder / "corpus", set()
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        read(seed)  # good ones are read
        (corpus / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            read(data)
        except Exception as error:
            text, at = str(error), traceback.extract_tb(error.__traceback__)[-1]
            refused = isinstance(error, ValueError | OSError) and "\n" not in text and len(text) < LONGEST
            wrong = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"
            if not refused and wrong not in seen:
                seen.add(wrong)
                (KEPT / f"{name}-{len(seen)}").write_bytes(data)
                print(f"WRONG {wrong} ({text!r:.60}) of {name}-{len(seen)}", flush=True)

    limits = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=2048", f"-artifact_prefix={KEPT / name}-"]
    length = 2 * max(map(len, seeds))
    atheris.Setup([sys.argv[0], *limits, f"-max_len={length}", "-seed=1", "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz one reader after the other, each in a child, and sum up."""
    seconds, *names = sys.argv[1:]
    KEPT.mkdir(parents=True, exist_ok=True)
    bad = False
    for name in names or READERS:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--child", name, seconds, folder], capture_output=True, text=True
            )
        talk = done.stdout + done.stderr
        wrong = re.findall("WRONG (.*)", talk) + re.findall("SUMMARY: (.*)", talk)
        covered = re.findall(r"cov: (\d+)", talk)
        if "INITED" not in talk:
            print(f"{name}: not fuzzed: {talk.splitlines()[-1]}")
            continue
        tried = re.search(r"number_of_executed_units: (\d+)", talk)[1]
        print(f"{name}: {tried} inputs, {covered[0]} branches at first, {covered[-1]} at last; wrong: {wrong or None}")
        bad |= bool(wrong) or done.returncode != 0
    sys.exit(bad)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        fuzz(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    main()
