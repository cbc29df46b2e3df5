"""refnet/AUDIT.md names functions and tests: all of them must exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "refnet" / "AUDIT.md").read_text()
NAMED = sorted(set(re.findall(r"`(refnet(?:\.\w+)+)`", PAGE)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def resolve(name):
    """The object that a dotted name of refnet stands for."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def test_the_page_names_functions_and_tests():
    assert len(NAMED) > 25 and len(TESTS) > 35


@pytest.mark.parametrize("name", NAMED)
def test_a_function_that_the_page_names_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize(("file", "test"), TESTS, ids=lambda value: value)
def test_a_test_that_the_page_names_exists(file, test):
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert test in functions


def test_every_row_has_a_function_and_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "refnet." in line]
    assert len(rows) > 30
    for row in rows:
        _, statement, function, test, _ = row.split("|")
        assert "`refnet." in function and re.search(r"`tests/[\w/]+\.py::\w+`", test), statement
