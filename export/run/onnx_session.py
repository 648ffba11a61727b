"""How does ONNX Runtime run a model on the execution provider that was asked for, and no other?"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.errors import AdaptError

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}

Array = NDArray[Any]


def ort_session(runtime: str, model: bytes, threads: int) -> Any:
    """Return an ONNX Runtime session on the runtime's execution provider.

    Args:
        runtime: ``ort-cpu`` or ``ort-cuda``.
        model: A serialised ONNX model.
        threads: CPU threads of one operator; operators run one after another.

    Raises:
        AdaptError: If ONNX Runtime is not installed, or the provider does not load.
    """
    ort = _onnxruntime()
    provider = PROVIDERS[runtime]
    if provider not in ort.get_available_providers():
        raise AdaptError(_no_provider(runtime, provider))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait steal the core from the session that is measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    providers = dict.fromkeys((provider, PROVIDERS["ort-cpu"]))
    session = ort.InferenceSession(model, options, providers=list(providers))
    # ONNX Runtime lists providers that cannot load and falls back without an error.
    if provider not in session.get_providers():
        raise AdaptError(_no_provider(runtime, provider))
    return session


def bound_call(session: Any, inputs: dict[str, Array], runtime: str) -> Callable[[], None]:
    """Return a call that runs a session on these inputs, which are copied to its device before."""
    ort = _onnxruntime()
    device = "cuda" if runtime == "ort-cuda" else "cpu"
    binding = session.io_binding()
    for name, array in inputs.items():
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise AdaptError(
            "ONNX Runtime is not installed; run `pip install onnxruntime-gpu` (Linux and Windows "
            "x86-64) or `pip install onnxruntime` (elsewhere), never both"
        ) from error
    return onnxruntime


def _no_provider(runtime: str, provider: str) -> str:
    return (
        f"runtime {runtime} needs ONNX Runtime's {provider}, which does not load on this machine; "
        "it takes an NVIDIA GPU with its driver, CUDA, cuDNN and `pip install onnxruntime-gpu` "
        "(without `onnxruntime`); without them choose runtime ort-cpu"
    )
