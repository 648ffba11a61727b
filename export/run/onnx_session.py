"""How does ONNX Runtime run a model on the execution provider that was asked for, and no other?"""

import contextlib
import ctypes
import functools
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.errors import AdaptError

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
# By default convolutions of fp32 take TF32 on a GPU, whose mantissa is that of fp16.
OPTIONS = {"ort-cpu": {}, "ort-cuda": {"use_tf32": "0"}}

Array = NDArray[Any]


def ort_session(runtime: str, model: bytes, threads: int, profile: Path | None = None) -> Any:
    """Return an ONNX Runtime session on the runtime's execution provider.

    Args:
        runtime: ``ort-cpu`` or ``ort-cuda``.
        model: A serialised ONNX model.
        threads: CPU threads of one operator; operators run one after another.
        profile: How the name of a JSON file begins that the session's ``end_profiling`` writes: the
            provider, types and time of every node that ran.

    Raises:
        AdaptError: If ONNX Runtime is not installed, or the provider does not load.
    """
    ort = _onnxruntime()
    provider = PROVIDERS[runtime]
    if provider not in ort.get_available_providers():
        raise AdaptError(_no_provider(runtime, "this package was built without it"))
    if runtime == "ort-cuda":
        _preload(ort)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait steal the core from the session that is measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    if _int8_of_fp16(model):  # ONNX Runtime 1.31 optimises pairs away whose scales are fp16
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    providers = {provider: OPTIONS[runtime], PROVIDERS["ort-cpu"]: {}}
    try:
        # A run that fails on the GPU must fail: ONNX Runtime would go on with the CPU, and say so
        # on stdout.
        session = ort.InferenceSession(
            model, options, providers=list(providers.items()), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors have no class in common
        if runtime == "ort-cpu":
            raise
        raise AdaptError(_no_provider(runtime, str(error))) from error
    # It lists providers that cannot load, and leaves them out without an error.
    if provider not in session.get_providers():
        raise AdaptError(_no_provider(runtime, _load_error(ort) or _preload(ort)))
    return session


def file_session(runtime: str, file: Path, threads: int) -> Any:
    """Return a session of an ONNX file.

    Raises:
        AdaptError: As of :func:`ort_session`, or if ONNX Runtime refuses the graph.
    """
    try:
        return ort_session(runtime, file.read_bytes(), threads)
    except AdaptError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no class in common
        reason = str(error).partition("\n")[0]
        raise AdaptError(
            f"ONNX Runtime does not load {file} ({reason}); export it again"
        ) from error


def bound_call(session: Any, inputs: dict[str, Array], runtime: str) -> Callable[[], None]:
    """Return a call that runs a session on these inputs, which are copied to its device before."""
    outputs = [output.name for output in session.get_outputs()]
    binding = _binding(session, inputs, outputs, runtime, outputs_on=_device(runtime))

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def fetching_call(
    session: Any, inputs: dict[str, Array], outputs: Sequence[str], runtime: str
) -> Callable[[], list[Array]]:
    """Return the same, but it brings these outputs back into the processor's memory."""
    binding = _binding(session, inputs, outputs, runtime, outputs_on="cpu")

    def call() -> list[Array]:
        session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    return call


def _binding(
    session: Any, inputs: dict[str, Array], outputs: Sequence[str], runtime: str, outputs_on: str
) -> Any:
    ort = _onnxruntime()
    binding = session.io_binding()
    for name, array in inputs.items():
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), _device(runtime))
        binding.bind_ortvalue_input(name, value)
    for output in outputs:
        binding.bind_output(output, outputs_on)
    return binding


def _device(runtime: str) -> str:
    return "cuda" if runtime == "ort-cuda" else "cpu"


def _int8_of_fp16(model: bytes) -> bool:
    """Whether convolutions compute in int8 in a model whose rest is fp16."""
    if b"DequantizeLinear" not in model:
        return False
    import onnx

    graph = onnx.load_from_string(model).graph
    scales = {node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    half = onnx.TensorProto.FLOAT16
    return any(t.data_type == half for t in graph.initializer if t.name in scales)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise AdaptError(
            "ONNX Runtime is not installed; run `pip install onnxruntime-gpu` (Linux and Windows "
            "x86-64) or `pip install onnxruntime` (elsewhere), never both"
        ) from error
    return onnxruntime


@functools.cache
def _preload(ort: Any) -> str:
    """Load CUDA and cuDNN from their Python packages; return what could not be loaded.

    The system's loader does not look there. It works without this only where PyTorch of the same
    CUDA version was imported before.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # which belongs to results
        ort.preload_dlls()
    return said.getvalue().strip()


def _load_error(ort: Any) -> str:
    """Return why the library of the CUDA provider does not load; empty if it does."""
    name = {
        "win32": "onnxruntime_providers_cuda.dll",
        "linux": "libonnxruntime_providers_cuda.so",
    }.get(sys.platform, "")
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / name))
    except OSError as error:
        return str(error)
    return ""


def _no_provider(runtime: str, cause: str) -> str:
    reason = " ".join(cause.split()) or "it gave no reason"
    return (
        f"runtime {runtime} needs ONNX Runtime's {PROVIDERS[runtime]}, which does not load on this "
        f"machine ({reason}); it takes an NVIDIA GPU with its driver, CUDA and cuDNN of the "
        "version that `adapt doctor` shows, and `pip install onnxruntime-gpu` (without "
        "`onnxruntime`); without them choose runtime ort-cpu"
    )
