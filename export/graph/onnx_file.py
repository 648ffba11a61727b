"""How is a network written as one ONNX file that says what it is?"""

import ast
import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adapt.artifacts import atomic_path, check_header, make_folder
from adapt.errors import AdaptError
from export.graph.nms import onnx_translations

HEADER = "adapt"  # key of the description in the file's metadata
_DAMAGED = "is not a readable ONNX file, it may be truncated; write it again with `adapt export`"
OPSET = 20  # TensorRT 10.0 reads 9 to 20; fp16 and int8 need 19


def write_onnx(
    network: nn.Module,
    example: Sequence[Tensor],
    names: tuple[Sequence[str], Sequence[str]],
    description: Mapping[str, Any],
    path: Path,
    opset: int = OPSET,
    *,
    inner: Sequence[str] = (),
    most_images: int | None = None,
) -> Path:
    """Write a network as a checked ONNX file; same network, same bytes.

    Every node is named after its module, such as ``features.backbone.fpn.inner_blocks.0.0/Conv``.

    Args:
        network: Any module; it is neither changed nor switched to evaluation mode.
        example: One tensor per input; their shapes become the file's.
        names: Input names and output names.
        description: JSON content from :func:`adapt.artifacts.header`.
        path: File to write.
        opset: ONNX operator set.
        inner: Names of further outputs of the network: these become named tensors within the graph.
        most_images: If given, the first axis of every input is free from 1 to this; the example's
            must be at least 2.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    make_folder(path.parent)  # before the seconds of the exporter
    model = trace(fused(network), example, (names[0], [*names[1], *inner]), opset, most_images)
    _hide_outputs(model.graph, inner)
    _name_nodes(model.graph)
    _strip(model)
    return save_onnx(model, description, path)


def _hide_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Make outputs inner tensors that keep their name and shape."""
    for output in [output for output in graph.output if output.name in names]:
        graph.value_info.append(output)
        graph.output.remove(output)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy that also outputs tensors that :func:`write_onnx` wrote as ``inner``."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    known = {output.name for output in copied.graph.output}
    found = [v for v in copied.graph.value_info if v.name in names and v.name not in known]
    copied.graph.output.extend(found)
    return copied


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node after the module it comes from, as errors and profiles will show it."""
    taken: Counter[str] = Counter()
    for node in graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


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
    except json.JSONDecodeError:
        return None


def load_onnx(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file.

    Raises:
        AdaptError: If it is missing, truncated or not ONNX.
    """
    if not path.is_file():
        raise AdaptError(f"{path} does not exist; `adapt export` writes ONNX files")
    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise AdaptError(f"{path} {_DAMAGED}") from error
    if not model.graph.node:
        raise AdaptError(f"{path} {_DAMAGED}")
    return model


def fused(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, with BatchNorms folded into convolutions.

    The exporter would fold them too, but wrongly for bfloat16.
    """
    network = copy.deepcopy(network).cpu().eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            _fuse_pairs(module)
    return network


def _fuse_pairs(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        conv, norm = layers[index], layers[index + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[index] = fuse_conv_bn_eval(conv, norm)
            layers[index + 1] = nn.Identity()


def trace(
    network: nn.Module,
    example: Sequence[Tensor],
    names: tuple[Sequence[str], Sequence[str]],
    opset: int,
    most_images: int | None = None,
) -> onnx.ModelProto:
    """Run PyTorch's exporter."""
    dynamic = most_images and torch.export.Dim("batch", min=1, max=most_images)
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(example),
            input_names=list(names[0]),
            output_names=list(names[1]),
            opset_version=opset,
            dynamic_shapes=tuple({0: dynamic} for _ in example) if dynamic else None,
            custom_translation_table=dict(onnx_translations()),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they name files of the machine that wrote the model."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    for initializer in graph.initializer:
        initializer.ClearField("metadata_props")
        initializer.ClearField("doc_string")
