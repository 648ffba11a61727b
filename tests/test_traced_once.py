"""What the tests save by tracing once changes no byte of what is exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import traced_once
from core_parts import random_architecture, tiny
from export_parts import INFO
from torch import nn

from adapt.data.images import InputSize
from adapt.detector.config import HeadKind
from adapt.detector.file import DetectorInfo
from export.graph import onnx_file
from export.graph.detector import export_detector


def exported(info: DetectorInfo, seed: int, path: Path) -> bytes:
    torch.manual_seed(seed)
    return export_detector(info.build(), info, path, provenance={}).read_bytes()


@pytest.mark.parametrize(
    "head",
    ["retinanet", *(pytest.param(head, marks=pytest.mark.slow) for head in ("fcos", "ssdlite"))],
)
def test_a_trace_with_other_parameters_is_the_trace_of_that_network(
    head: HeadKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = replace(INFO.detector, fpn_width=8, head=head)
    size = InputSize(64, 64)
    info = replace(INFO, architecture=random_architecture(tiny(), 0), detector=detector, input=size)
    traced: list[nn.Module] = []

    def trace(network: nn.Module, *how: Any) -> Any:
        traced.append(network)
        return real(network, *how)

    real = traced_once.trace
    monkeypatch.setattr(traced_once, "trace", trace)
    monkeypatch.setattr(onnx_file, "_trace", traced_once.traced_once(tmp_path))
    first, second = (exported(info, seed, tmp_path / "a.onnx") for seed in (0, 1))
    assert len(traced) == 1
    monkeypatch.setattr(onnx_file, "_trace", real)
    assert second == exported(info, 1, tmp_path / "b.onnx") != first


class Scaled(nn.Module):
    """A convolution by a weight that is computed from parameters, which a graph holds finished."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.conv.weight) * self.log_scale.exp()


def test_what_is_computed_from_parameters_is_traced_for_each_network(tmp_path: Path) -> None:
    signature = onnx_file.GraphSignature({"x": torch.ones(1, 2, 3, 3)}, ["y"])
    look_up = traced_once.traced_once(tmp_path)
    torch.manual_seed(0)
    networks = [Scaled().eval(), Scaled().eval()]
    networks[1].log_scale.data.fill_(1.0)
    for network in networks:
        found = look_up(network, signature, onnx_file.OPSET)
        assert found == traced_once.trace(network, signature, onnx_file.OPSET)
