from pathlib import Path

import pytest
import simulated_engine
from export_parts import exported, half, images
from simulated_gpu import simulated_gpu

from adapt.errors import AdaptError
from export.engine.build import build_engine
from export.run.engine_parity import verify_engine
from export.run.parity import NamedImages

SEEN = NamedImages(images(3))


@pytest.fixture(params=["tensor-nms", "none", "fp16"])
def built(request: pytest.FixtureRequest, exports: Path, tmp_path: Path):
    """An ONNX file and its engine."""
    with simulated_gpu("10.16.0.72"):
        onnx = half(exports) if request.param == "fp16" else exported(exports, request.param)
        build_engine(onnx, tmp_path / "detector.plan")
        yield tmp_path / "detector.plan", onnx


def test_an_engine_that_computes_what_its_file_does_passes(built):
    report = verify_engine(*built, SEEN)
    assert report.passed
    assert report.images == 3


def test_an_engine_that_overflows_is_refused(built, monkeypatch):
    compute = simulated_engine._compute

    def overflow(engine, memory, shapes):
        compute(engine, memory, shapes)
        for name in {"scores", "boxes", "cls_logits"} & memory.keys():
            memory[name].data.fill_(float("nan"))

    monkeypatch.setattr(simulated_engine, "_compute", overflow)
    with pytest.raises(AdaptError, match=r"detector\.plan does not compute what .*\.onnx computes"):
        verify_engine(*built, SEEN)
