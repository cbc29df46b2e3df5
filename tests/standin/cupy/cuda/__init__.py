"""One device that does everything at once: streams and events are there, and do nothing."""

from types import SimpleNamespace as _Names

from . import cublas

__all__ = ["cublas", "device", "nvrtc", "runtime"]


class Device:
    """The device, current inside."""

    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def use(self):
        pass

    def synchronize(self):
        pass


class Stream:
    """A queue, current inside."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def use(self):
        return self

    def synchronize(self):
        pass

    def record(self, event=None):
        return event or Event()

    def wait_event(self, event):
        pass


Stream.null = Stream(null=True)


class Event:
    """A place in a queue, long past."""

    done = True

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def get_current_stream(device_id=-1):
    return Stream.null


def get_elapsed_time(start_event, end_event):
    return 0.0


def is_available():
    return True


def alloc_pinned_memory(size):
    return memoryview(bytearray(size))


runtime = _Names(
    CUDA_R_32F=cublas.CUDA_R_32F,
    CUDA_R_64F=cublas.CUDA_R_64F,
    getDevice=lambda: 0,
    setDevice=lambda device: None,
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda device: {"name": b"stand-in", "totalGlobalMem": 8 << 30},
    deviceSynchronize=lambda: None,
    driverGetVersion=lambda: 12080,
    runtimeGetVersion=lambda: 12080,
    memGetInfo=lambda: (8 << 30, 8 << 30),
)
nvrtc = _Names(getVersion=lambda: (12, 8))
device = _Names(get_cublas_handle=lambda: 0, Device=Device)
