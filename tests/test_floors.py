"""The house of design.md: what may import what, and what every function says of itself. And the suite's own rules."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import naive
import pytest
import wrong_twins
from conftest import oracle

import refnet

ROOT = Path(refnet.__file__).parent.parent

# Floor by floor; a file imports from the floors below, and on its own floor what is named before it.
HOUSE = [
    ["backend", "geometry"],
    ["ranks", "arch", "parallel", "processes", "ops", "images", "kernels", "sgd", "hdf5"],
    ["models", "scenes", "parts", "shards", "datasets", "voc", "imagenet", "loader", "weights"],
    ["layers", "net", "interop"],
    ["features", "evaluate", "classifiers", "duplicates", "boxes", "deconv", "top", "occlusion", "memory", "train"],
    ["experiments", "report"],
]
ORDER = [room for floor in HOUSE for room in floor]

CORE = sorted((ROOT / "refnet").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
every_file = pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))


def module_name(path):
    """refnet/ops/conv.py is refnet.ops.conv, and refnet/ops/__init__.py is refnet.ops."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_name(path) for path in CORE]


def room(module):
    """The place of a module in the house: ops for refnet.ops.conv; none for the package itself."""
    return module.split(".")[1] if "." in module else None


def imports(path, *, inside_functions=True):
    """The modules that a file imports; those of refnet by their full names."""
    found, to_visit = set(), [ast.parse(path.read_text())]
    while to_visit:
        node = to_visit.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & set(MODULES)) or {node.module}
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            to_visit += ast.iter_child_nodes(node)
    return found


def of_refnet(modules):
    return {module for module in modules if module.split(".")[0] == "refnet"}


def packages(modules):
    """Those that come neither with Python nor from here."""
    return {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"refnet"}


# --- the floors ---


def test_every_file_has_its_floor():
    rooms = {room(module) for module in MODULES} - {None}
    assert rooms <= set(ORDER), f"put {rooms - set(ORDER)} into HOUSE, and into the design"


@every_file
def test_a_file_imports_only_from_lower_floors(path):
    here = room(module_name(path))
    for module in of_refnet(imports(path)):
        assert here is not None, "refnet/__init__.py imports nothing"
        same_room = room(module) == here
        assert same_room or ORDER.index(room(module)) < ORDER.index(here), f"{here} imports {module}, from above"


@pytest.mark.parametrize("path", sorted((ROOT / "refnet" / "ops").glob("[a-z]*.py")), ids=lambda path: path.name)
def test_an_operation_imports_nothing_but_arrays_sizes_windows_and_tiles(path):
    allowed = {"refnet.backend", "refnet.geometry", "refnet.ops.windows", "refnet.ops.tiles"} - {module_name(path)}
    assert of_refnet(imports(path)) <= allowed


@pytest.mark.parametrize("name", ["geometry", "arch"])
def test_sizes_and_architectures_need_only_python(name):
    assert packages(imports(ROOT / "refnet" / f"{name}.py")) == set()


def test_experiments_do_not_import_each_other():
    for path in CORE:
        if room(module_name(path)) == "experiments":
            assert not {module for module in imports(path) if room(module) == "experiments"}


def test_nothing_imports_the_tools():
    tools = {"tools"} | {path.stem for path in TOOLS}
    for path in CORE:
        assert not {module.split(".")[0] for module in imports(path)} & tools


@every_file
def test_nothing_for_a_person_at_a_screen_is_imported_by_the_core(path):
    allowed = {"numpy", "scipy", "PIL", "h5py", "threadpoolctl", "cupy"}
    if room(module_name(path)) == "interop":
        allowed |= {"onnx", "onnxruntime", "keras", "torch", "safetensors", "cv2"}
    if module_name(path) == "refnet.ranks":
        allowed |= {"mpi4py"}
    assert packages(imports(path)) <= allowed


@every_file
def test_cupy_is_named_in_three_files_and_only_inside_functions(path):
    assert "cupy" not in packages(imports(path, inside_functions=False))
    if room(module_name(path)) not in ("backend", "kernels", "ranks"):
        assert "cupy" not in packages(imports(path))


def test_everything_can_be_imported_without_cupy_and_what_the_tools_need():
    blocked = ["cupy", "tqdm", "matplotlib", "torch", "mpi4py", "onnx", "safetensors"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
import importlib
for name in {MODULES}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_most_start_with_loads_nothing_that_takes_long():
    """numpy.random, which NumPy 2 loads only where it is named, takes as long as all of these."""
    code = """
import sys, numpy, h5py
before = set(sys.modules)
from refnet import models, net, deconv, weights
print(*set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "refnet.net" in done.stdout.split()
    assert not {"numpy.random", "scipy", "PIL", "threadpoolctl"} & set(done.stdout.split())


# --- the package ---


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(module_name(path) for path in CORE if path.name == "__init__.py")


def test_no_tool_shadows_a_module_of_python():
    assert not {path.stem for path in TOOLS} & sys.stdlib_module_names


# --- what functions say of themselves ---


def public_functions():
    """Functions, classes and methods of refnet whose names do not start with _, by their full names."""
    for info in pkgutil.walk_packages(refnet.__path__, "refnet."):
        module = importlib.import_module(info.name)
        for name, each in inspect.getmembers(module, lambda m: inspect.isfunction(m) or inspect.isclass(m)):
            if each.__module__ != module.__name__ or name.startswith("_"):
                continue
            yield f"{info.name}.{name}", each
            for attribute, method in vars(each).items() if inspect.isclass(each) else ():
                if inspect.isfunction(method) and not attribute.startswith("_"):
                    yield f"{info.name}.{name}.{attribute}", method


PUBLIC = dict(public_functions())
# What the paper's layers do: windows, tiles and checks only serve them, as what winograd has beside its operations.
OPERATIONS = {
    name: each
    for name, each in PUBLIC.items()
    if name.startswith("refnet.ops.")
    and not name.rpartition(".")[2].startswith("check_")
    and not name.startswith(("refnet.ops.windows.", "refnet.ops.tiles."))
    and (not name.startswith("refnet.ops.winograd.") or "winograd_" in name)
}


def test_every_public_function_has_a_docstring():
    assert len(PUBLIC) > 100

    def silent(each):
        """Without a docstring, or with the one that a dataclass or a named tuple is given."""
        return not each.__doc__ or each.__doc__.startswith(f"{each.__name__}(")

    assert [name for name, each in PUBLIC.items() if silent(each)] == []


def test_every_module_has_a_docstring():
    assert [str(path) for path in (*CORE, *TOOLS) if ast.get_docstring(ast.parse(path.read_text())) is None] == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_names_its_place_in_the_paper_or_in_krizhevsky(name):
    doc = OPERATIONS[name].__doc__
    assert "section " in doc or "Krizhevsky" in doc


# --- the suite ---


def test_every_operation_has_a_naive_twin():
    drawn_at_random = {"dropout_mask"}
    operations = {name.rpartition(".")[2].replace("winograd_", "conv_") for name in OPERATIONS}
    assert operations - drawn_at_random <= set(dir(naive))


def test_the_naive_twins_import_only_numpy():
    assert imports(Path(naive.__file__)) == {"numpy"}


def test_every_wrong_twin_is_used():
    """Each stands in the one list of its operation; the lists themselves are asked for by name in the tests."""
    lists = {name: each for name, each in vars(wrong_twins).items() if name.isupper()}
    listed = [twin for each in lists.values() for twin in each]
    here = [
        each
        for name, each in vars(wrong_twins).items()
        if getattr(each, "__module__", None) == "wrong_twins" and not name.startswith("_")
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(here)
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name in lists if f"wrong_twins.{name})" not in tests] == []


def test_a_missing_oracle_is_skipped_at_home_and_fails_in_ci(monkeypatch):
    monkeypatch.delenv("REFNET_ORACLES", raising=False)
    with pytest.raises(pytest.skip.Exception):
        oracle("an_oracle_that_is_not_installed")
    monkeypatch.setenv("REFNET_ORACLES", "1")
    with pytest.raises(ModuleNotFoundError):
        oracle("an_oracle_that_is_not_installed")
    assert oracle("os") is os
