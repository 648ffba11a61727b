"""From an architecture to ONNX to ONNX Runtime and TensorRT-RTX, for many architectures."""

import importlib.util

import numpy as np
import pytest
from core_parts import mostly_slow, random_architecture
from export_parts import awake
from published import TABLE_TWO, mbconv_rows, published_backbone, row_architecture

from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo
from adapt.detector.retinanet import build_detector
from adapt.space import SearchSpace
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.graph.detector import export_detector
from export.run.parity import NamedImages, verify_export

SPACE = SearchSpace.load("mobilenet_v2")
SIZE = InputSize(64, 96)
DETECTOR = DetectorConfig(num_classes=2, fpn_width=16, head_depth=1, candidates=150)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 96), dtype=np.uint8)
USUAL = {"FBNet-C"}  # of other widths than the space, and with plain ReLU


def check(model, info, folder):
    """The export computes what torchvision computes, and becomes an engine."""
    path = export_detector(model, info, folder / "detector.onnx", provenance={})
    report = verify_export(model, info, path, NamedImages(IMAGES))
    assert report.passed, report
    assert report.match.matched > 20
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt_rtx")
    built = build_engine(path, folder / "detector.plan", BuildOptions(flavour="tensorrt_rtx"))
    assert built.outputs["boxes"] == "float[1, 100, 4]"


@pytest.mark.trt
@pytest.mark.parametrize("seed", mostly_slow(20, usual=1))
def test_random_architectures(seed, tmp_path):
    info = DetectorInfo(random_architecture(SPACE, seed), DETECTOR, SIZE, ("a", "b"))
    check(awake(info.build, SIZE), info, tmp_path)


@pytest.mark.trt
@pytest.mark.shared
@pytest.mark.skipif(not TABLE_TWO.is_file(), reason=f"{TABLE_TWO} is absent")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow])
        for name in ("MobileNetV2", "FNA", "FBNet-C", "Proxyless (GPU)", "DenseNAS-C")
    ],
)
def test_published_backbones(name, tmp_path):
    row = mbconv_rows()[name]
    info = DetectorInfo(row_architecture(row), DETECTOR, SIZE, ("a", "b"))
    # Built inside of awake(), which seeds the weights: others may have a score on the threshold.
    check(awake(lambda: build_detector(published_backbone(row), DETECTOR), SIZE), info, tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(not TABLE_TWO.is_file(), reason=f"{TABLE_TWO} is absent")
def test_these_are_all_published_networks_of_mbconvs():
    assert len(mbconv_rows()) == 5
