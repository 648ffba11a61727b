"""PyTorch's exporter takes seconds for every detector: networks are traced once per session.

Tracing is a function of the network, the signature and the opset. Everything that pickling sees of
them, with the bytes of every tensor, is the key; what cannot be pickled is always traced. Of
parameters that the graph holds as they are, only the form belongs to the key, which of them are
equal, which the exporter writes once, and which are zero, which it leaves out: a trace of other
parameters gets those of the network.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import onnx
import torch
from core_parts import once
from torch import nn

from export.graph import onnx_file

trace = onnx_file._trace


class _ByContent(pickle.Pickler):
    """Pickles tensors by their content: PyTorch's own way writes addresses of memory.

    Attributes:
        by_form: Whether parameters are pickled by their form only, and by which are equal.
        places: Place of every parameter among those that are not equal.
    """

    def __init__(self, content: io.BytesIO, by_form: bool) -> None:
        super().__init__(content)
        self.by_form = by_form
        self.places: dict[tuple[str, ...], int] = {}

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return None
        raw = thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        layout = (thing.dtype, tuple(thing.shape), thing.stride(), type(thing).__name__)
        known = (*map(str, layout), hashlib.sha256(raw).hexdigest())
        if not self.by_form or not isinstance(thing, nn.Parameter) or not any(raw):
            return known
        return (*known[:-1], str(self.places.setdefault(known, len(self.places))))


def _key(*things: Any, by_form: bool) -> str:
    content = io.BytesIO()
    _ByContent(content, by_form).dump(things)
    return hashlib.sha256(content.getvalue()).hexdigest()


def _parameters(network: nn.Module) -> dict[str, bytes]:
    """The bytes of every parameter by the name that it has in a graph."""
    return {name: one.detach().numpy().tobytes() for name, one in network.named_parameters()}


def _holds(model: onnx.ModelProto, network: nn.Module) -> bool:
    """Whether the graph holds every parameter as it is, so that nothing was computed from one."""
    contents = _parameters(network)
    held = {one.name: one.raw_data for one in model.graph.initializer if one.name in contents}
    as_they_are = all(contents[name] == raw for name, raw in held.items())
    return as_they_are and {raw for raw in contents.values() if any(raw)} <= set(held.values())


def _with_parameters(model: onnx.ModelProto, network: nn.Module) -> onnx.ModelProto:
    """The graph with the parameters of another network of its form."""
    contents = _parameters(network)
    for tensor in model.graph.initializer:
        if tensor.name in contents:
            tensor.raw_data = contents[tensor.name]
    return model


def traced_once(folder: Path) -> Any:
    """Return the exporter that looks into ``folder`` first."""

    def look_up(network: Any, signature: onnx_file.GraphSignature, opset: int) -> onnx.ModelProto:
        try:
            form, content = (_key(network, signature, opset, by_form=by) for by in (True, False))
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
            return trace(network, signature, opset)

        def save(path: Path) -> None:
            model = trace(network, signature, opset)
            if _holds(model, network):
                onnx.save(model, path)
            else:  # networks of this form are traced one by one
                path.write_bytes(b"")

        file, own = folder / f"{form}.onnx", folder / f"{content}.onnx"
        try:
            once(file, save)
            if file.stat().st_size:
                return _with_parameters(onnx.load(file), network)
            once(own, lambda path: onnx.save(trace(network, signature, opset), path))
        except OSError:  # a test of full disks
            return trace(network, signature, opset)
        return onnx.load(own)

    return look_up
