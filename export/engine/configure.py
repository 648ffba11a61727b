"""Which options does a TensorRT build have, and how does NVIDIA's Polygraphy carry them out?"""

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
from export.engine.installed import INSTALL, logger_of
from export.engine.timing_cache import timing_cache

Shape = tuple[int, ...]
TOPK = 3840  # largest K of TopK, says the list of operators of TensorRT's ONNX parser


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
        tuned_batch: With a dynamic batch, the number of images the engine is tuned for; by default
            the largest.

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


def check_candidates(trt: str, nms_candidates: int) -> None:
    """Check that TensorRT can rank so many candidates.

    Raises:
        AdaptError: If not.
    """
    if nms_candidates > TOPK:
        raise AdaptError(
            f"{trt} ranks at most {TOPK} candidates, got nms_candidates {nms_candidates}; export "
            "with --nms-candidates, or set it in the recipe's [detector]"
        )


def build(
    trt: Any,
    builder: Any,
    network: Any,
    profile: Mapping[str, list[Shape]],
    options: BuildOptions,
) -> bytes | None:
    """Configure TensorRT's builder and build an engine.

    Args:
        trt: The TensorRT package.
        builder: Its builder.
        network: The parsed network.
        profile: Smallest, tuned and largest shape of every input whose batch is free.
        options: Workspace, level and timing cache.

    Returns:
        The serialised engine, or None if it is refused; the reasons are in TensorRT's log, and
        Polygraphy's where TensorRT gave none.

    Raises:
        AdaptError: If Polygraphy is missing, or works for another kind of TensorRT already, or the
            timing cache cannot be used.
    """
    polygraphy = _polygraphy(trt)
    from polygraphy.exception import PolygraphyException

    cache = None if _is_rtx(trt) else timing_cache(trt, options.timing_cache)
    settings: dict[str, Any] = {
        "profiles": [_polygraphy_profile(polygraphy, profile)],
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # or the inspector tells no types
        "builder_optimization_level": options.level,
    }
    if options.workspace_mb:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_mb << 20}

    def configure(*network: Any) -> Any:
        config = _config_loader(trt, polygraphy, settings)(*network)
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: TF32 has the mantissa of fp16
        if _is_rtx(trt):  # or a run allocates memory, which no CUDA graph can hold
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if cache is not None:
            cache.attach(config)
        return config

    engine = polygraphy.EngineBytesFromNetwork((builder, network), configure)
    with _silent():
        try:
            plan = bytes(engine())
        except PolygraphyException as error:
            reasons = logger_of(trt).errors
            reasons += [] if reasons else [str(error)]
            return None
    if cache is not None:
        cache.built()
    return plan


def _polygraphy_profile(polygraphy: Any, shapes: Mapping[str, list[Shape]]) -> Any:
    profile = polygraphy.Profile()
    for name, (smallest, tuned, largest) in shapes.items():
        profile.add(name, smallest, tuned, largest)
    return profile


def _config_loader(trt: Any, polygraphy: Any, settings: Mapping[str, Any]) -> Any:
    """Return what creates the builder's configuration, by Polygraphy's class for this TensorRT."""
    if not _is_rtx(trt):
        return polygraphy.CreateConfig(**settings)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    # TensorRT-RTX builds without a GPU too, if it is told for which one: an A100.
    on_gpu = torch.cuda.is_available()
    target = {"use_gpu": True} if on_gpu else {"compute_capabilities": [(8, 0)]}
    return CreateConfigRTX(**settings, **target)


def _is_rtx(trt: Any) -> bool:
    return bool(trt.__name__ == "tensorrt_rtx")


def _polygraphy(trt: Any) -> Any:
    """Import Polygraphy, which works for one kind of TensorRT in all of a process."""
    try:
        from polygraphy import config as choice
    except ImportError as error:
        raise AdaptError(f"Polygraphy is not installed; {INSTALL[trt.__name__]}") from error
    # Polygraphy reads its choice when the backend is imported, and never again.
    rtx = _is_rtx(trt)
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
        # Polygraphy always sets a timing cache, which TensorRT-RTX deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
