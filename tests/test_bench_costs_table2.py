"""The detectors that the paper compares have the sizes that it prints."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adapt.cost.counted import counted_madds
from adapt.cost.units import detector_units, madds
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector
from adapt.errors import AdaptError
from adapt.network.published import NETWORKS, OTHERS, published_backbone
from adapt.sources import SOURCES
from bench.costs.table2 import ROWS, UNPUBLISHED, table_two
from cli import app

EXACT = {  # parameters and multiply-adds at 800x1088
    "mobilenet_v2": (11_488_244, 133_053_449_976),
    "resnet50": (37_968_692, 202_840_385_528),
    "detnas": (12_627_732, 134_134_497_656),
    "fna": (11_732_244, 133_029_704_376),
    "fbnet_c": (12_645_876, 134_174_961_464),
    "proxyless_gpu": (14_618_484, 135_805_454_584),
    "densenas_c": (13_235_980, 133_913_298_552),
}


def test_published_detectors_have_the_sizes_of_table_two() -> None:
    rows = {row.backbone: row for row in table_two()}
    assert list(rows) == [name for name, *_ in ROWS]
    for name, (parameters, multiply_adds) in EXACT.items():
        row = rows[name]
        assert row.mparams == parameters / 1e6
        assert row.gmadds == multiply_adds / 1e9
        agrees = [
            f"{ours:.2f}" == f"{paper:.2f}"
            for ours, paper in ((row.mparams, row.paper_mparams), (row.gmadds, row.paper_gmadds))
        ]
        assert agrees == [name != "detnas"] * 2
        assert bool(row.note) == (name == "detnas")
    for name in ("fna++", "ours"):
        assert (rows[name].mparams, rows[name].gmadds) == (None, None)
        assert UNPUBLISHED in rows[name].note


@pytest.mark.parametrize("name", NETWORKS)
def test_counting_agrees_with_the_units_of_a_search(name: str) -> None:
    config, size = DetectorConfig(5, fpn_width=32, head_depth=1), InputSize(96, 160)
    with torch.device("meta"):
        model = build_detector(published_backbone(name), config)
    units = detector_units(NETWORKS[name], config, size)
    assert counted_madds(model, size) == sum(map(madds, units))


@pytest.mark.parametrize("name", [*NETWORKS, *OTHERS])
def test_published_backbones_train_and_detect(name: str) -> None:
    torch.manual_seed(0)
    model = build_detector(published_backbone(name), DetectorConfig(3, fpn_width=16, head_depth=0))
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    losses: dict[str, Any] = model([torch.rand(3, 64, 96)] * 2, [target] * 2)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    used = [parameter.grad is not None for parameter in model.backbone.body.parameters()]
    assert all(used[: len(used) // 2])  # what follows the last tap is not there
    strides = [64 // level.shape[2] for level in model.backbone(torch.rand(1, 3, 64, 96)).values()]
    assert strides[:3] == [8, 16, 32]


def test_an_unknown_backbone_is_refused() -> None:
    known = ", ".join([*SOURCES, "fna"])
    with pytest.raises(AdaptError, match=f"no backbone 'resnet'; known are {known}"):
        published_backbone("resnet")


@pytest.mark.parametrize(
    "measured", [("fna",), pytest.param(tuple(NETWORKS), marks=pytest.mark.slow)], ids=len
)
def test_the_table_is_printed_and_measured(
    measured: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, ["bench", "--table2"])
    assert result.exit_code == 0, result.output
    assert "133.05" in result.stdout
    kept = {name: NETWORKS[name] for name in measured}
    monkeypatch.setattr("bench.costs.table2.NETWORKS", kept)
    options = ["--size", "64x96", "--measure", "ort-cpu", "--json"]
    result = CliRunner().invoke(app, ["bench", "--table2", *options])
    assert result.exit_code == 0, result.output
    rows = {row["backbone"]: row for row in json.loads(result.stdout)}
    for name, row in rows.items():
        assert (row["least_ms"] is not None) == (name in measured)
    assert 0 < rows["fna"]["least_ms"] < 1000
    for name in OTHERS:
        assert rows[name]["note"].endswith("only networks of MBConvs or bottlenecks are measured")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table2", "--measure", "onnx"], "--measure must be one of ort-cpu"),
        (["--table2", "--size", "64"], "--size must be like"),
        ([], "nothing to compare; pass files, or --table2"),
        (["x.onnx"], "pass --data DATASET"),
    ],
)
def test_wrong_options_are_one_sentence(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
