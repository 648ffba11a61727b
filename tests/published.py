"""Which published networks of MBConvs does Table II list?"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adapt.architecture import Architecture, Block
from adapt.network.backbone import Backbone
from adapt.network.operations import MBConv
from adapt.space import Operation

TABLE_TWO = Path(__file__).parents[2] / "shared" / "facts" / "table2.json"


def table_two() -> dict[str, dict[str, Any]]:
    """The rows by name; none where the file is absent."""
    if not TABLE_TWO.is_file():
        return {}
    return {row["backbone"]: row for row in json.loads(TABLE_TWO.read_text())["rows"]}


def mbconv_rows() -> dict[str, dict[str, Any]]:
    """The rows of networks that consist of MBConvs."""
    return {
        name: row
        for name, row in table_two().items()
        if row["blocks"] and {op["op"] for op in row["blocks"]} == {"mbconv"}
    }


def row_architecture(row: Mapping[str, Any]) -> Architecture:
    """Rebuild a network of MBConvs from the published rows of its configuration."""
    blocks: dict[int, list[dict[str, Any]]] = {}
    for op in row["blocks"]:
        blocks.setdefault(op["stage"], []).append(op)
    stem, *searchable = (blocks[stage] for stage in sorted(blocks))
    return Architecture(
        "mobilenet_v2",
        row["stem"]["out_ch"],
        stem[0]["out_ch"],
        tuple(row["fpn_tap_stages"]),
        tuple(
            Block(
                ops[0]["stride"],
                ops[0]["out_ch"],
                tuple(Operation(op["kernel"], op["expansion"]) for op in ops),
            )
            for ops in searchable
        ),
    )


def published_backbone(row: Mapping[str, Any]) -> Backbone:
    """The network itself, with what no architecture of ours has: plain ReLU, a residual at once."""
    backbone = Backbone(row_architecture(row))
    layers = [layer for layer in backbone.features if isinstance(layer, MBConv)]
    for layer, op in zip(layers, row["blocks"], strict=True):
        layer.shape = replace(layer.shape, residual=op["residual"])
        assert layer.shape.kernel == op["kernel"]
        assert (layer.shape.c_in, layer.shape.c_out) == (op["in_ch"], op["out_ch"])
    if row["stem"]["act"] == "relu":
        for module in list(backbone.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(module, name, nn.ReLU())
    return backbone
