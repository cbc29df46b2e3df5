"""The kernels' sources through NVIDIA's own compiler, which needs no device: for every type, for two generations."""

import ctypes
import re
from pathlib import Path

import pytest
from conftest import oracle

from refnet import kernels
from refnet.kernels import launch

ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200
CONSTANTS = [{"V": 1, "REACH": 2, "SHARED": 0}, {"V": 4, "REACH": 2, "SHARED": 1}]


@pytest.fixture(scope="module")
def nvrtc():
    """libnvrtc of the wheel nvidia-cuda-nvrtc-cu12."""
    folder = Path(oracle("nvidia.cuda_nvrtc").__path__[0], "lib")
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))


def compiled(nvrtc, source, architecture):
    """Size of the code in bytes, and the compiler's log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = [option.encode() for option in (*launch.OPTIONS, f"--gpu-architecture={architecture}")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    size.value = 0
    if not failed:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return size.value, log.value.decode()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", launch.SOURCES)
def test_a_source_compiles(nvrtc, name, dtype, architecture):
    text = (launch.HERE / f"{name}.cu").read_text()
    for constants in CONSTANTS:
        used = {key: value for key, value in constants.items() if re.search(rf"\b{key}\b", text)}
        size, log = compiled(nvrtc, launch.source(name, dtype, **used), architecture)
        assert size > 0 and not log.strip("\0"), log


def test_a_wrong_source_does_not(nvrtc):
    size, log = compiled(nvrtc, 'extern "C" __global__ void f(float* x) { x[0] = nothing; }', "sm_90")
    assert size == 0
    assert 'identifier "nothing" is undefined' in log


def test_every_source_is_tried():
    assert {path.stem for path in Path(kernels.__file__).parent.glob("*.cu")} == set(launch.SOURCES) != set()
