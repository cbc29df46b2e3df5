"""Arrays come first and by place; everything else is named where it is called."""

import inspect

import numpy as np
import pytest

from refnet import ops
from refnet.backend import Array


@pytest.mark.parametrize("name", ops.__all__)
def test_what_is_no_array_is_named(name):
    for parameter in inspect.signature(getattr(ops, name)).parameters.values():
        by_place = parameter.annotation in (Array, np.ndarray)
        wanted = parameter.POSITIONAL_OR_KEYWORD if by_place else parameter.KEYWORD_ONLY
        assert parameter.kind == wanted, parameter
