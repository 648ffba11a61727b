"""PyTorch's exporter takes seconds for every detector: equal networks are traced once per session.

Tracing is a function of the network, the signature and the opset. Everything that pickling sees of
them, with the bytes of every tensor, is the key; what cannot be pickled is always traced.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import onnx
import torch
from core_parts import once

from export.graph import onnx_file

trace = onnx_file._trace


class _ByContent(pickle.Pickler):
    """Pickles tensors by their content: PyTorch's own way writes addresses of memory."""

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return None
        raw = thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        layout = (thing.dtype, tuple(thing.shape), thing.stride(), type(thing).__name__)
        return (*map(str, layout), hashlib.sha256(raw).hexdigest())


def _key(*things: Any) -> str:
    content = io.BytesIO()
    _ByContent(content).dump(things)
    return hashlib.sha256(content.getvalue()).hexdigest()


def traced_once(folder: Path) -> Any:
    """Return the exporter that looks into ``folder`` first."""

    def look_up(network: Any, signature: onnx_file.GraphSignature, opset: int) -> onnx.ModelProto:
        try:
            key = _key(network, signature, opset)
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
            return trace(network, signature, opset)
        file = folder / f"{key}.onnx"
        try:
            once(file, lambda path: onnx.save(trace(network, signature, opset), path))
        except OSError:  # a test of full disks
            return trace(network, signature, opset)
        return onnx.load(file)

    return look_up
