"""How is a PyTorch module written as an ONNX file with a description inside, and read again?"""

import ast
import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adapt.artifacts import atomic_path, check_header, make_place
from adapt.errors import AdaptError
from export.graph import nms, pooling, ranking

HEADER = "adapt"  # key of the description in the file's metadata
_DAMAGED = "is not a readable ONNX file, it may be truncated; write it again with `adapt export`"
OPSET = 20  # TensorRT 10.0 reads 9 to 20; fp16 and int8 need 19


@dataclass(frozen=True)
class GraphSignature:
    """The tensors of an ONNX graph that have names to rely on.

    Attributes:
        inputs: An example of every input by name; the shapes and data types become the graph's.
        outputs: Names of the graph's outputs, the first that the network returns.
        inner: Names of what the network returns after these: tensors inside of the graph, which
            are no outputs of it.
        max_batch: If given, the first axis of every input is free, from 1 to this; that of the
            examples must then be at least 2.
    """

    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    inner: Sequence[str] = ()
    max_batch: int | None = None


def write_onnx(
    network: nn.Module,
    signature: GraphSignature,
    description: Mapping[str, Any],
    path: Path,
    opset: int = OPSET,
) -> Path:
    """Write a network as a checked ONNX file; same network, same bytes.

    Every node is named after its module, such as ``features.backbone.fpn.inner_blocks.0.0/Conv``.

    Args:
        network: Any module; it is neither changed nor switched to evaluation mode.
        signature: Names and shapes of the inputs, names of the outputs.
        description: JSON content from :func:`adapt.artifacts.header`.
        path: File to write.
        opset: ONNX operator set.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    make_place(path)  # an unwritable folder must not cost the seconds of the exporter
    model = _trace(fused(network), signature, opset)
    _hide_outputs(model.graph, signature.inner)
    _name_nodes(model.graph)
    _strip_notes(model)
    return save_onnx(model, description, path)


def _trace(network: nn.Module, signature: GraphSignature, opset: int) -> onnx.ModelProto:
    """Run PyTorch's exporter; all that the network returns is an output, inner tensors too."""
    batch = signature.max_batch and torch.export.Dim("batch", min=1, max=signature.max_batch)
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(signature.inputs.values()),
            input_names=list(signature.inputs),
            output_names=[*signature.outputs, *signature.inner],
            opset_version=opset,
            dynamic_shapes=tuple({0: batch} for _ in signature.inputs) if batch else None,
            custom_translation_table={
                **nms.onnx_translations(),
                **ranking.onnx_translations(),
                **pooling.onnx_translations(),
            },
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _hide_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Turn outputs into inner tensors, which keep their names and shapes."""
    for output in [output for output in graph.output if output.name in names]:
        graph.value_info.append(output)
        graph.output.remove(output)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy in which the inner tensors of a :class:`GraphSignature` are outputs too."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    outputs = {output.name for output in copied.graph.output}
    inner = [v for v in copied.graph.value_info if v.name in names and v.name not in outputs]
    copied.graph.output.extend(inner)
    return copied


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node after the module it comes from: errors and profiles show these names."""
    uses: Counter[str] = Counter()
    for node in graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        uses[name] += 1
        node.name = name if uses[name] == 1 else f"{name}_{uses[name]}"


def save_onnx(model: onnx.ModelProto, description: Mapping[str, Any], path: Path) -> Path:
    """Check a model and write it with its description; same model, same bytes.

    Raises:
        AdaptError: If the file cannot be written.
    """
    onnx.helper.set_model_props(model, {HEADER: json.dumps(description, sort_keys=True)})
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return path


def read_description(path: Path, kind: str) -> dict[str, Any]:
    """Return the description that :func:`write_onnx` put into a file.

    Args:
        path: An ONNX file.
        kind: Expected kind of artifact, for instance ``onnx-detector``.

    Raises:
        AdaptError: If the file is missing, truncated, or not such an artifact of ``adapt``.
    """
    return check_header(description_of(load_onnx(path)), kind, path)


def description_of(model: onnx.ModelProto) -> Any:
    """Return the description in a model's metadata, or None if ``adapt`` did not write it."""
    texts = [prop.value for prop in model.metadata_props if prop.key == HEADER]
    try:
        return json.loads(texts[0]) if texts else None
    except ValueError:  # no JSON, or no text
        return None


def load_onnx(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file.

    Raises:
        AdaptError: If it is missing, truncated or not ONNX, or keeps parameters in other files.
    """
    if not path.is_file():
        raise AdaptError(f"{path} does not exist; `adapt export` writes ONNX files")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise AdaptError(f"{path} {_DAMAGED}") from error
    if not model.graph.node:
        raise AdaptError(f"{path} {_DAMAGED}")
    # It names them, and could name any file.
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise AdaptError(
                f"{path} keeps {tensor.name or 'a tensor'} in another file, which is not read; "
                "write it again as one file"
            )
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors that a graph holds, those of its nodes and the graphs in them too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (one for node in graph.node for one in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def fused(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, with BatchNorms folded into convolutions."""
    # The exporter would fold them too, but wrongly for bfloat16.
    network = copy.deepcopy(network).cpu().eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    return network


def _fold_batch_norms(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        conv, norm = layers[index], layers[index + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[index] = fuse_conv_bn_eval(conv, norm)
            layers[index + 1] = nn.Identity()


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they name files of the machine that wrote the model."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
