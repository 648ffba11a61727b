"""How does NVIDIA's Polygraphy configure and build an engine?"""

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.errors import AdaptError

INSTALL = {
    "tensorrt": "run `pip install 'adapt-detector[trt]'` (needs an NVIDIA GPU)",
    "tensorrt_rtx": "run `pip install 'adapt-detector[trt-rtx]'` (builds engines without a GPU)",
}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``; by default the first that is installed.
        workspace_mb: Largest scratch memory of a layer in MiB; TensorRT's own default if None.
        level: Builder optimisation level, 0 (builds fast) to 5 (runs fast); TensorRT's if None.
        timing_cache: File of tactic timings that several builds share; made if there is none. What
            TensorRT timed once it does not time again, so equal layers get equal tactics. Unused by
            TensorRT-RTX, which chooses tactics when the engine runs.
        tuned_batch: With a dynamic batch, the number of images the engine is tuned for; the most by
            default.

    Raises:
        AdaptError: If a value is out of range.
    """

    flavour: str | None = None
    workspace_mb: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    tuned_batch: int | None = None

    def __post_init__(self) -> None:
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise AdaptError(f"the workspace must be at least 1 MiB, got {self.workspace_mb}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise AdaptError(f"the builder level must lie in [0, 5], got {self.level}")


def build(
    trt: Any,
    builder: Any,
    network: Any,
    profile: Mapping[str, list[Shape]],
    options: BuildOptions,
) -> bytes | None:
    """Configure and build.

    Args:
        trt: The TensorRT package.
        builder: Its builder.
        network: The network of a model.
        profile: Smallest, tuned and largest shape of every input whose batch is free.
        options: How.

    Returns:
        The serialised engine, or None if TensorRT refuses; the reasons are in its log.

    Raises:
        AdaptError: If Polygraphy is missing, or works for another kind of TensorRT already.
    """
    polygraphy = _polygraphy(trt)
    from polygraphy.exception import PolygraphyException

    rtx = trt.__name__ == "tensorrt_rtx"
    cache = str(options.timing_cache) if options.timing_cache and not rtx else None
    shapes = polygraphy.Profile()
    for name, (least, tuned, most) in profile.items():
        shapes.add(name, least, tuned, most)
    settings: dict[str, Any] = {
        "profiles": [shapes],
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # or the inspector knows nothing
        "load_timing_cache": cache,
        "builder_optimization_level": options.level,
    }
    if options.workspace_mb:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mb << 20}
    if rtx:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        on_gpu = torch.cuda.is_available()
        target = {"use_gpu": True} if on_gpu else {"compute_capabilities": [(8, 0)]}
        create = CreateConfigRTX(**settings, **target)
    else:
        create = polygraphy.CreateConfig(**settings)

    def configure(*network: Any) -> Any:
        config = create(*network)
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: TF32 has the mantissa of fp16
        return config

    engine = polygraphy.EngineBytesFromNetwork(
        (builder, network), configure, save_timing_cache=cache
    )
    with _silent():
        try:
            return bytes(engine())
        except PolygraphyException:
            return None


def _polygraphy(trt: Any) -> Any:
    """Import Polygraphy for a kind of TensorRT; which one, it decides once per process."""
    try:
        from polygraphy import config as choice
    except ImportError as error:
        raise AdaptError(f"Polygraphy is not installed; {INSTALL[trt.__name__]}") from error
    rtx = trt.__name__ == "tensorrt_rtx"
    if rtx != choice.USE_TENSORRT_RTX and "polygraphy.backend.trt" in sys.modules:
        raise AdaptError(
            "one process builds engines for one kind of TensorRT only; run the command once for "
            "tensorrt and once for tensorrt-rtx"
        )
    choice.USE_TENSORRT_RTX = rtx
    return importlib.import_module("polygraphy.backend.trt")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Polygraphy's own log off the terminal; TensorRT's goes to our logger."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1), warnings.catch_warnings():
        # It sets a timing cache always, which TensorRT-RTX deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
