"""How much latency do decoding and NMS add to a graph, and how does torchvision's own compare?

    python -m bench.figures.deployment --size 320 --size 640

MobileNetV2 RetinaNet, 80 classes, random weights, ONNX Runtime on one CPU thread. ONNX's NMS
operator looks only at (anchor, class) pairs whose score passes a threshold, so that its latency
depends on their number: the threshold is set so that ``--passing`` pairs of the image pass.

Compared are graphs of ``adapt export`` with other tails, the graph of PyTorch's deprecated exporter
("legacy") and eager torchvision.
"""

import json
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torchvision.models.detection import RetinaNet

from adapt.artifacts import library_versions
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo
from adapt.runtime import Tail
from adapt.sources import mobilenet_v2
from bench.latency.provenance import device_description
from bench.latency.timing import Call, Latency, Protocol, measure, wall_timer
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.installed import trt_flavours
from export.graph.detector import RawHeads, export_detector
from export.graph.onnx_file import OPSET
from export.graph.options import GraphOptions
from export.run.inference import Array, ImageDetections, unit
from export.run.matching import MatchReport, match_detections
from export.run.onnx_session import bound_call, ort_session
from export.run.runner import OrtRunner

CLASSES = 80
LEGACY_OPSET = 17  # newest that the legacy exporter writes
# Name in the report -> tail, and boxes that reach non-maximum suppression.
TAILS: dict[str, tuple[Tail, int]] = {
    "raw heads": ("none", 1000),
    "onnx-nms 1000": ("onnx-nms", 1000),
    "tensor-nms 1000": ("tensor-nms", 1000),
    "tensor-nms 300": ("tensor-nms", 300),
}


def random_detector(
    side: int, width: int, passing: int, image: Array
) -> tuple[RetinaNet, DetectorInfo]:
    """Return a detector with ``passing`` (anchor, class) pairs of an image above its threshold."""
    size, names = InputSize(side, side), tuple(str(n) for n in range(CLASSES))
    config = DetectorConfig(num_classes=CLASSES, fpn_width=width)
    info = DetectorInfo(mobilenet_v2(), config, size, names)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = info.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # one batch sets the statistics
        model.backbone(torch.randn(4, 3, side, side))
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.05)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.02)
        model.eval()
        scores = RawHeads(model)(torch.from_numpy(unit(image)))[0].sigmoid().flatten()
        threshold = float(scores.topk(passing + 1).values[-1])
    model.score_thresh = threshold
    return model, replace(info, detector=replace(info.detector, score_threshold=threshold))


def compare_graphs(
    side: int, width: int, passing: int, rounds: int, folder: Path
) -> dict[str, Any]:
    """Time all graphs and eager torchvision in interleaved rounds on one image.

    Returns:
        Median and minimum latency of each in milliseconds and relative to the raw heads, export
        seconds, file sizes, TensorRT-RTX build seconds, and how the detections agree.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    model, info = random_detector(side, width, passing, image)
    files, legacy, seconds = _exported(model, info, image, folder)
    runners = {name: OrtRunner("ort-cpu", path) for name, path in files.items()}
    session = ort_session("ort-cpu", legacy.read_bytes(), threads=1)
    inputs = {"images": unit(image)[0]}
    calls: dict[str, Call] = {name: runner.bind(image) for name, runner in runners.items()}
    calls["legacy"] = bound_call(session, inputs, "ort-cpu")
    calls["eager"] = _eager(model, image)
    torch.set_num_threads(1)
    protocol = Protocol(rounds=rounds, round_ms=500.0)
    latencies = measure({name: wall_timer(call) for name, call in calls.items()}, protocol)
    expected = ImageDetections(*_best_first(session.run(None, inputs)))
    return {
        "latency_ms": _latencies_ms(latencies),
        "export_s": {name: round(value, 1) for name, value in seconds.items()},
        "size_mb": {name: round(path.stat().st_size / 1e6, 2) for name, path in files.items()},
        "tensorrt_rtx": _build(files["tensor-nms 1000"], folder),
        "agreement_with_legacy": {
            name: _agreement(expected, runners[name].infer(image)[0], info)
            for name in ("onnx-nms 1000", "tensor-nms 1000")
        },
    }


def _exported(
    model: RetinaNet, info: DetectorInfo, image: Array, folder: Path
) -> tuple[dict[str, Path], Path, dict[str, float]]:
    """Return the file of each tail, the legacy file, and the seconds that each export took."""
    files, seconds = {}, {}
    for name, (tail, candidates) in TAILS.items():
        described = replace(info, detector=replace(info.detector, nms_candidates=candidates))
        files[name] = folder / f"{name}.onnx"
        start = time.perf_counter()
        export_detector(model, described, files[name], GraphOptions(tail), provenance={})
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    legacy = legacy_export(model, image, folder / "legacy.onnx")
    seconds["legacy"] = time.perf_counter() - start
    return files, legacy, seconds


def _latencies_ms(latencies: dict[str, Latency]) -> dict[str, dict[str, float]]:
    raw = latencies["raw heads"]
    return {
        name: {
            "min": round(latency.min_ms, 2),
            "p50": round(latency.p50_ms, 2),
            "min_over_raw_heads": round(latency.min_ms / raw.min_ms, 4),
            "p50_over_raw_heads": round(latency.p50_ms / raw.p50_ms, 4),
        }
        for name, latency in latencies.items()
    }


def legacy_export(model: RetinaNet, image: Array, path: Path) -> Path:
    """Write torchvision's whole RetinaNet with PyTorch's deprecated exporter."""
    images = [torch.from_numpy(unit(image)[0])]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(path),
            input_names=["images"],
            opset_version=LEGACY_OPSET,
            dynamo=False,
        )
    return path


def _eager(model: RetinaNet, image: Array) -> Call:
    images = [torch.from_numpy(unit(image)[0])]

    @torch.inference_mode()
    def call() -> object:
        return model(images)

    return call


def _best_first(outputs: list[Array]) -> tuple[Array, Array, Array]:
    """Return boxes, scores and labels of the legacy graph by falling score."""
    boxes, scores, labels = outputs
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order], labels[order]


def _agreement(
    expected: ImageDetections, found: ImageDetections, info: DetectorInfo
) -> dict[str, float]:
    report: MatchReport = match_detections(
        expected,
        found,
        score_tol=1e-4,
        box_tol=0.05,
        score_threshold=info.detector.score_threshold,
        detections=info.detector.detections,
    )
    return {"matched": report.matched, "missing": report.missing, "extra": report.extra}


def _build(path: Path, folder: Path) -> dict[str, Any] | None:
    if "tensorrt_rtx" not in trt_flavours():
        return None
    report = build_engine(path, folder / "detector.plan", BuildOptions(flavour="tensorrt_rtx"))
    return {
        "version": report.tensorrt_version,
        "build_s": round(report.build_seconds, 1),
        "size_mb": round(report.size_bytes / 1e6, 1),
    }


def main(
    size: Annotated[list[int], typer.Option(help="Side of the input; repeatable.")] = [320],  # noqa: B006
    width: Annotated[int, typer.Option(help="Channels of pyramid and heads.")] = 256,
    passing: Annotated[int, typer.Option(help="(Anchor, class) pairs above the threshold.")] = 300,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of half a second.")] = 10,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print latencies, sizes and times as JSON."""
    results = {}
    for side in size:
        with tempfile.TemporaryDirectory() as folder:
            results[f"{side}x{side}"] = compare_graphs(side, width, passing, rounds, Path(folder))
    content = {
        "model": f"RetinaNet MobileNetV2, FPN {width}, {CLASSES} classes, random, opset {OPSET}",
        "runtime": "ort-cpu fp32 batch 1, 1 thread",
        "passing": passing,
        **results,
        "device": device_description(),
        "versions": library_versions(),
    }
    text = json.dumps(content, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
