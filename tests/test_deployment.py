"""One trained detector as artifacts: equal AP on torch and ONNX Runtime, and an engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.network.weights import find_local_weights
from adapt.sources import mobilenet_v2
from bench.networks.evaluation import evaluate_artifact
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune


@pytest.fixture(scope="module")
def split(shared_data: Path) -> CocoSplit:
    """Real COCO images with all objects as one class: 80 are not learnt in seconds."""
    loaded = load_split(shared_data / "tiny_coco", "val2017")
    images = loaded.images[:8]  # so few are learnt in seconds
    boxes = tuple(replace(b, labels=np.zeros_like(b.labels)) for b in loaded.boxes[:8])
    one = {"class_names": ("object",), "category_ids": (1,)}
    return replace(loaded, images=images, boxes=boxes, **one)


@pytest.fixture(scope="module")
def detector(split: CocoSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector fitted to the evaluated images themselves, so that its AP is not zero."""
    if find_local_weights("mobilenet_v2") is None:
        pytest.skip("ImageNet weights are not on this machine: run `adapt weights mobilenet_v2`")
    demo = Recipe.load("demo")
    recipe = replace(demo, input=InputSize(160, 192), finetune=replace(demo.finetune, epochs=30))
    path = tmp_path_factory.mktemp("deployment") / "detector.safetensors"
    return run_finetune(recipe, mobilenet_v2(), split, path)


@pytest.mark.shared
def test_ap_of_the_onnx_artifact_is_the_ap_of_torch(detector: Path, split: CocoSplit) -> None:
    onnx = detector.with_suffix(".onnx")
    deploy(detector, onnx, Deployment())
    by_torch, by_onnx = evaluate_artifact(detector, split), evaluate_artifact(onnx, split)
    assert by_torch.ap > 0.01  # at AP 0 any two detectors would agree
    assert by_onnx.ap == pytest.approx(by_torch.ap, abs=0.002)


@pytest.mark.shared
@pytest.mark.trt
def test_exported_detector_becomes_a_tensorrt_engine(detector: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    onnx = detector.with_name("engine.onnx")
    summary = deploy(detector, onnx, Deployment(engine=BuildOptions()))
    assert Path(summary["engine"]).stat().st_size > 1_000_000
    assert summary["precision"] == "fp32"
