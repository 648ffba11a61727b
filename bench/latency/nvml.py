"""How does NVIDIA's management library tell of the GPU that PyTorch computes on, and never fail?"""

import functools
from typing import Any

import torch


class Nvml:
    """NVIDIA's management library in this process, and its handles of one GPU.

    In a slice of a GPU (MIG, Multi-Instance GPU) name and UUID are the slice's; clock, power and
    temperature are told of the whole board only.

    Attributes:
        library: The module ``pynvml``; None where there is no NVIDIA driver.
        gpu: The GPU or slice; None where it is not found.
        board: The GPU, or the one that the slice is of; None where it is not found.
    """

    def __init__(self) -> None:
        self.library = _initialised()
        self.gpu = self.board = self._whole_gpu()
        if self.gpu is None:
            self.gpu = self.read("nvmlDeviceGetHandleByUUID", _uuid("MIG-"))
            self.board = self.read("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self.gpu)

    @property
    def sliced(self) -> bool:
        """Whether the GPU is a slice of one."""
        return self.gpu is not None and self.gpu is not self.board

    def read(self, function: str, *arguments: Any) -> Any:
        """Return what a function of the library tells; None if it cannot tell that here."""
        if self.library is None or any(argument is None for argument in arguments):
            return None
        try:
            return getattr(self.library, function)(*arguments)
        except self.library.NVMLError:  # not supported, no permission, not found ...
            return None

    def _whole_gpu(self) -> Any:
        if not torch.cuda.is_available():
            return self.read("nvmlDeviceGetHandleByIndex", 0)
        # By UUID, since NVML numbers GPUs without regard to CUDA_VISIBLE_DEVICES.
        return self.read("nvmlDeviceGetHandleByUUID", _uuid("GPU-"))


@functools.cache
def nvml() -> Nvml:
    """Return the library, initialised once: that takes up to 0.4 s where there are eight GPUs."""
    return Nvml()


def _initialised() -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _uuid(kind: str) -> str | None:
    """Return the UUID of PyTorch's current GPU as NVML writes it; PyTorch leaves out the kind."""
    if not torch.cuda.is_available():
        return None
    try:
        return f"{kind}{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    except RuntimeError:  # it counts a GPU that it cannot start, such as one that is lost
        return None
