"""Which CUDA do the driver and the libraries here speak, and what if they do not fit?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import torch

from bench.latency.provenance import gpu_description

GPU = "run it on a machine with an NVIDIA GPU and its driver"
CUDA_12 = (
    "update the driver, or install what is built for an older CUDA: the extra trt-cu12 with "
    "constraints-cu12.txt, as docs/tensorrt-a100.md describes"
)
# Python packages that hold TensorRT's libraries; their names end in the CUDA version.
PACKAGES = {"TensorRT": "tensorrt-cu{}", "TensorRT-RTX": "tensorrt-rtx-cu{}"}
# NVIDIA's support matrix of TensorRT-RTX 1.0 to 1.7: the GPUs of workstations, not those of data
# centres such as A100 (8.0) and H100 (9.0).
RTX_CAPABILITIES = ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class CudaStack:
    """What of CUDA is installed here.

    Attributes:
        gpu: Model name of the GPU that the driver lists; empty without one.
        driver: Version of NVIDIA's driver; empty without one.
        supported: Newest CUDA version that the driver runs; empty without one.
        wanted: CUDA version that each library was built for, by its name.
        torch_error: Why PyTorch finds no GPU, in its own words; empty if it finds one.
    """

    gpu: str
    driver: str
    supported: str
    wanted: Mapping[str, str]
    torch_error: str

    @classmethod
    def here(cls) -> "CudaStack":
        """Look at this machine."""
        gpu = gpu_description()
        known = {name: str(gpu.get(name, "")) for name in ("name", "driver", "cuda")}
        return cls(known["name"], known["driver"], known["cuda"], _wanted(), _torch_error())

    def __str__(self) -> str:
        driver = f"driver {self.driver} runs CUDA up to {self.supported}"
        wanted = ", ".join(f"{library} CUDA {version}" for library, version in self.wanted.items())
        return f"{driver if self.gpu else 'no NVIDIA driver'}; built for: {wanted or 'none'}"

    @property
    def too_new(self) -> list[str]:
        """Libraries whose CUDA the driver does not run: it runs every minor version of its own."""
        if not self.supported:
            return []
        return [name for name, v in self.wanted.items() if _major(v) > _major(self.supported)]

    @property
    def problem(self) -> str:
        """Why PyTorch, which allocates for every runtime, finds no GPU; empty if it finds one."""
        if not self.torch_error:
            return ""
        if not self.gpu:
            return "no CUDA GPU found"
        return f"the driver lists {self.gpu}, but PyTorch does not find it: {self.torch_error}"

    @property
    def fix(self) -> str:
        """What makes the GPU usable; empty if it is."""
        if not (self.torch_error or self.too_new):
            return ""
        if not self.gpu:
            return GPU
        if self.too_new:
            return f"{', '.join(self.too_new)} and the driver do not fit: {CUDA_12}"
        if "torch" not in self.wanted:
            return "this PyTorch was built without CUDA: install a build with it"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            hidden = os.environ["CUDA_VISIBLE_DEVICES"]
            return f"CUDA_VISIBLE_DEVICES is {hidden!r} and may hide the GPU: unset it"
        return "try `nvidia-smi`, and restart the machine after an update of the driver"


def _wanted() -> dict[str, str]:
    found: dict[str, str | None] = {"torch": torch.version.cuda, "onnxruntime": _onnxruntime_cuda()}
    for library, package in PACKAGES.items():
        majors = [major for major in ("12", "13") if _installed(package.format(major))]
        found[library] = " and ".join(majors)
    return {library: version for library, version in found.items() if version}


def _onnxruntime_cuda() -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    version: str | None = getattr(onnxruntime, "cuda_version", None)
    return version


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _torch_error() -> str:
    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        return str(error).partition("\n")[0]
    return "it counts no device"


def _major(version: str) -> int:
    """Return the newest major version in ``12.4``, or in ``12 and 13``."""
    return max(int(part.partition(".")[0]) for part in version.split(" and "))


def unsupported_by_rtx(capability: tuple[int, int]) -> str:
    """Return what to say of TensorRT-RTX on a GPU of this compute capability; empty if fine."""
    if capability in RTX_CAPABILITIES:
        return ""
    known = ", ".join("{}.{}".format(*pair) for pair in RTX_CAPABILITIES)
    return (
        "NVIDIA supports TensorRT-RTX on compute capabilities {} only, and this GPU has "
        "{}.{}: use runtime tensorrt".format(known, *capability)
    )
