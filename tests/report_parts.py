"""A folder as `adapt run` leaves it, whose detectors have a known quality."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapt.architecture import Architecture
from adapt.artifacts import header, write_json, write_text
from adapt.data.coco import CocoSplit, load_split
from adapt.data.evaluate import Detections, coco_results, evaluate
from adapt.data.synthetic import generate
from adapt.sources import mobilenet_v2
from bench.latency.timing import Latency, Protocol
from bench.networks.measure import BenchResult, Entry
from bench.networks.report import write_report

IMAGES = 24
LATENCIES = {"derived-75": (7.9, 8.0, 8.1), "source": (9.0, 10.0, 11.0)}  # medians of the rounds


def all_but_one(split: CocoSplit, leave_out: bool) -> Iterator[Detections]:
    """Every object, but for the first of every third image if one is to be left out."""
    for place, (image, boxes) in enumerate(zip(split.images, split.boxes, strict=True)):
        kept = slice(1 if leave_out and place % 3 == 0 else 0, None)
        scores = np.linspace(0.9, 0.8, len(boxes))[kept]
        yield Detections(image.id, boxes.xyxy[kept], scores, boxes.labels[kept])


def entry(name: str, split: CocoSplit, report: Path) -> Entry:
    """Detect, evaluate and store; the source is the one that misses objects."""
    found = list(all_but_one(split, leave_out=name == "source"))
    stored = f"detections/{name}.json"
    write_text(report / stored, json.dumps(coco_results(found, split)))
    return Entry(
        name=name,
        artifact=Path(f"elsewhere/{name}.onnx"),
        runner={"runtime": "ort-cpu", "version": "1.0", "device": "cpu", "threads": 1},
        precision="fp32",
        architecture="0123456789abcdef",
        height=128,
        width=128,
        batch=1,
        metrics=evaluate(split, found),
        latency=Latency.of([(median,) * 3 for median in LATENCIES[name]]),
        madds=1.5e9,
        params=2_500_000,
        size_mb=9.3,
        detections=stored,
    )


def write_network(folder: Path) -> Architecture:
    """Write a network that differs from the source in its first block."""
    content = mobilenet_v2().to_dict()
    content["blocks"][0].update(width=16, ops=["k5_e3"])
    network = Architecture.from_dict(content)
    network.save(
        folder / "arch-75.json",
        rule="budget 7.5 ms, verified",
        budget={"unit": "ms", "amount": 7.5},
        costs={"predicted_ms": 6.0, "corrected_ms": 6.5, "measured_ms": 6.25},
        finalists=[
            {"setting": "input 128x128", "measured_ms": 7.25},
            {"setting": "input 160x160", "measured_ms": 7.5},
        ],
        race=[
            [
                {"finalist": 0, "epochs": 2, "val_ap": 40.0},
                {"finalist": 1, "epochs": 2, "val_ap": 41.0},
            ]
        ],
    )
    return network


def write_log(folder: Path, name: str) -> None:
    """Write a training of three epochs."""
    lines = [{"step": n, "epoch": float(n), "loss": 1 / n, "val_ap": 10.0 * n} for n in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(folder / f"{name}.training.jsonl", text)


def write_run(folder: Path) -> Path:
    """Write a run's folder beside its data; return it."""
    split = load_split(
        generate(folder / "data", seed=3, train=1, val=IMAGES, size=(128, 128)), "val"
    )
    run, report = folder / "run", folder / "run" / "report"
    result = BenchResult(
        entries=tuple(entry(name, split, report) for name in LATENCIES),
        annotations=split.annotations,
        images=len(split),
        threads=1,
        protocol=Protocol(rounds=3, round_ms=1.0),
        device={"device": "Some CPU", "cores": 4},
        versions={"python": "3.11", "torch": "2.14.1"},
        place=split.place.absolute(),
        annotations_sha256=split.sha256,
    )
    write_report(report, result)
    write_json(run / "run.json", header("run", stages={}))
    write_network(run)
    for name in LATENCIES:
        write_log(run, name)
    return run
