"""Which TensorRT is installed here, does it start, and what does it say?"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from adapt.errors import AdaptError

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # in order of preference
INSTALL = {
    "tensorrt": "run `pip install 'adapt-detector[trt]'`, or [trt-cu12] with a driver below 580 "
    "(needs an NVIDIA GPU)",
    "tensorrt_rtx": "run `pip install 'adapt-detector[trt-rtx]'` (builds engines without a GPU)",
}


def trt_flavours() -> dict[str, str]:
    """Return the installed kinds of TensorRT and their versions, preferred first."""
    modules = {name: _import(name) for name in FLAVOURS}
    return {name: module.__version__ for name, module in modules.items() if module is not None}


def load_tensorrt(flavour: str | None = None) -> Any:
    """Import TensorRT, or else TensorRT-RTX.

    Args:
        flavour: ``tensorrt`` or ``tensorrt_rtx``, if only this one will do.

    Raises:
        AdaptError: If it is not installed.
    """
    for name in FLAVOURS if flavour is None else (flavour,):
        module = _import(name)
        if module is not None:
            return module
    if flavour is not None:
        raise AdaptError(f"{flavour} is not installed; {INSTALL[flavour]}")
    raise AdaptError(f"no TensorRT is installed; {' or '.join(INSTALL.values())}")


def check_builder(flavour: str) -> None:
    """Check that a kind of TensorRT is installed and starts here.

    Raises:
        AdaptError: If not.
    """
    builder_of(load_tensorrt(flavour))


def _import(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, its libraries are not
        return None


@functools.cache
def builder_of(trt: Any) -> Any:
    """Return the builder of all engines of this process: to start one takes up to seconds.

    Raises:
        AdaptError: If it does not start, such as without a GPU.
    """
    logger = logger_of(trt)
    try:
        return trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # TypeError: the C++ constructor returned nothing
        raise refused(trt, "does not start", logger.errors, "it needs an NVIDIA GPU") from error


def refused(trt: Any, what: str, reasons: Sequence[str], remedy: str) -> AdaptError:
    """Return the error that something did not work, with TensorRT's own reasons."""
    unique = dict.fromkeys(reason.strip() for reason in reasons)
    explanation = "; ".join(unique) or "it gave no reason"
    return AdaptError(f"{trt.__name__} {trt.__version__} {what} ({explanation}); {remedy}")


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the only logger that TensorRT allows in a process; it keeps errors and warnings."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps messages to explain a failure with, prints none."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            """Forget the messages of an earlier build."""
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Logger()
