"""How is a network written as one ONNX file that says what it is?"""

import copy
import json
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
) -> Path:
    """Write a network with fixed shapes as a checked ONNX file; same network, same bytes.

    Args:
        network: Any module; it is neither changed nor switched to evaluation mode.
        example: One tensor per input; their shapes become the file's.
        names: Input names and output names.
        description: JSON content from :func:`adapt.artifacts.header`.
        path: File to write.
        opset: ONNX operator set.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    make_folder(path.parent)  # before the seconds of the exporter
    model = trace(fused(network), example, names, opset)
    _strip(model)
    return save_onnx(model, description, path)


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
) -> onnx.ModelProto:
    """Run PyTorch's exporter."""
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(example),
            input_names=list(names[0]),
            output_names=list(names[1]),
            opset_version=opset,
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
