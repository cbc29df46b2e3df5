"""The public names that CuPy has."""

import tomllib
from pathlib import Path

_listed = tomllib.loads((Path(__file__).parent / "names.toml").read_text())
VERSION = _listed["version"]
MODULE, UFUNCS, NDARRAY = (set(_listed[each].split()) for each in ("module", "ufuncs", "ndarray"))
