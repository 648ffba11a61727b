"""Can the page of a report be used for an evaluation of COCO's size, and how long is it built?

    python -m bench.figures.report_page --out FILE

The evaluation is generated: images of noise, boxes and classes by chance (frequent and rare ones,
as in COCO), and detections of models that find a share of them. The page is real: it is built by
the project's own functions, and shown in headless Chromium where that is installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from adapt.artifacts import library_versions, write_json, write_text
from adapt.command_line import grouped
from adapt.data.coco import CocoSplit, ImageBoxes, load_split
from adapt.data.evaluate import Detections, coco_results, evaluate
from bench.latency.provenance import device_description
from bench.latency.timing import Latency, Protocol
from bench.networks.footprint import PeakMemory
from bench.networks.measure import BenchResult, Entry
from bench.networks.report import write_report
from bench.report.page import PAGE, write_page

WIDTH, HEIGHT = 640, 480
DIFFERENT = 8  # images; the others are links to them
SIDES = (10.0, 400.0)  # pixels of a box
WINDOWS = (390, 1440)  # pixels: a phone, a screen
Floats = NDArray[np.float64]

# Loads a page in a frame, since a headless window is at least 500 pixels wide.
SHOW = """<body style="margin:0"><pre id="told"></pre><script>
const start = performance.now(), frame = document.createElement("iframe");
frame.style = "width:{width}px;height:900px;border:0";
frame.onload = () => {{
  const page = frame.contentDocument.documentElement;
  const told = {{height: page.scrollHeight, wide: page.scrollWidth, window: page.clientWidth}};
  told.load_ms = Math.round(performance.now() - start);
  document.getElementById("told").textContent = "told" + JSON.stringify(told) + "told";
}};
frame.src = "{page}";
document.body.append(frame);
</script></body>"""


@dataclass(frozen=True)
class Scale:
    """How large an evaluation is."""

    images: Annotated[int, typer.Option(help="Images.")] = 5000
    classes: Annotated[int, typer.Option(help="Classes.")] = 80
    boxes: Annotated[int, typer.Option(help="Boxes of all images.")] = 36_000
    detections: Annotated[int, typer.Option(help="Detections of a model in every image.")] = 100
    models: Annotated[int, typer.Option(help="Models.")] = 3


def generate_evaluation(folder: Path, scale: Scale, seed: int = 0) -> Path:
    """Write a data set, and the report of models on it; return the report's folder."""
    chance = np.random.default_rng(seed)
    split = _generated_split(folder / "data", scale, chance)
    report = folder / "run" / "report"
    names = ["source", *(f"derived-{90 - 10 * n}" for n in range(scale.models - 1))][::-1]
    result = BenchResult(
        entries=tuple(
            _entry(name, split, report, found, scale, chance)
            for name, found in zip(names, np.linspace(0.6, 0.7, len(names)), strict=True)
        ),
        annotations=split.annotations,
        images=len(split),
        threads=1,
        protocol=Protocol(rounds=3, round_ms=1.0),
        device=device_description(),
        versions=library_versions(),
        place=split.place.absolute(),
        annotations_sha256=split.sha256,
    )
    write_report(report, result)
    return report


def _generated_split(root: Path, scale: Scale, chance: Generator) -> CocoSplit:
    images, labels = _images(root / "images", scale, chance), np.arange(scale.classes)
    share = 1 / (labels + 2)
    labels = chance.choice(labels, scale.boxes, p=share / share.sum())
    places = np.sort(chance.integers(0, scale.images, scale.boxes))
    annotations = [
        {"id": n, "image_id": int(at), "category_id": int(label), "bbox": box, "iscrowd": 0}
        for n, (at, label, box) in enumerate(
            zip(places, labels, _boxes(scale.boxes, chance).tolist(), strict=True), start=1
        )
    ]
    for one in annotations:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    names = [{"id": n, "name": f"class {n:02d}"} for n in range(scale.classes)]
    content = {"images": images, "categories": names, "annotations": annotations}
    write_text(root / "annotations" / "val.json", json.dumps(content))
    return load_split(root, "val")


def _images(folder: Path, scale: Scale, chance: Generator) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    for number in range(scale.images):
        path = folder / f"{number:012d}.jpg"
        if number < DIFFERENT:
            # As detailed as photos are, so that their JPEGs are as large.
            coarse = chance.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)
        else:
            os.link(folder / f"{number % DIFFERENT:012d}.jpg", path)
    return [
        {"id": n, "file_name": f"{n:012d}.jpg", "width": WIDTH, "height": HEIGHT}
        for n in range(scale.images)
    ]


def _boxes(number: int, chance: Generator) -> Floats:
    """Return ``float64[number, 4]``, x, y, width and height inside of an image."""
    sides = np.exp(chance.uniform(np.log(SIDES[0]), np.log(SIDES[1]), (number, 2)))
    corners = chance.uniform(0, 1, (number, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate([corners, sides], axis=1).round(2)


def _entry(
    name: str, split: CocoSplit, report: Path, found: float, scale: Scale, chance: Generator
) -> Entry:
    detections = list(_detected(split, found, scale, chance))
    stored = f"detections/{name}.json"
    write_text(report / stored, json.dumps(coco_results(detections, split)))
    return Entry(
        name=name,
        artifact=Path(f"{name}.onnx"),
        runner={"runtime": "ort-cpu", "version": "0", "device": "cpu", "threads": 1},
        precision="fp32",
        architecture="0123456789abcdef",
        height=320,
        width=320,
        batch=1,
        metrics=evaluate(split, detections),
        latency=Latency.of([(40 * found,) * 3] * 3),
        madds=1e9,
        params=1_000_000,
        size_mb=4.0,
        detections=stored,
    )


def _detected(
    split: CocoSplit, found: float, scale: Scale, chance: Generator
) -> Iterator[Detections]:
    """Yield detections of a share of the objects, some of wrong class or place, and of nothing."""
    for image, boxes in zip(split.images, split.boxes, strict=True):
        there = _some(boxes, found, scale, chance)
        rest = scale.detections - len(there)
        nothing = _boxes(rest, chance)
        nothing[:, 2:] += nothing[:, :2]
        labels = chance.integers(0, scale.classes, rest)
        scores = np.concatenate([chance.beta(5, 2, len(there)), chance.beta(1, 9, rest)])
        yield Detections(
            image.id,
            np.concatenate([there.xyxy, nothing]),
            scores,
            np.concatenate([there.labels, labels]),
        )


def _some(boxes: ImageBoxes, found: float, scale: Scale, chance: Generator) -> ImageBoxes:
    kept = np.flatnonzero(chance.random(len(boxes)) < found)[: scale.detections]
    sides = boxes.xyxy[kept, 2:] - boxes.xyxy[kept, :2]
    moved = boxes.xyxy[kept] + chance.normal(0, 0.06, (len(kept), 4)) * np.tile(sides, 2)
    wrong = chance.random(len(kept)) < 0.1
    labels = np.where(wrong, chance.integers(0, scale.classes, len(kept)), boxes.labels[kept])
    return ImageBoxes(moved, labels, boxes.crowd[kept], boxes.areas[kept])


def browser() -> str | None:
    """Return the program of Chromium; None if it is not installed."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def shown(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """Show a page in headless Chromium.

    Args:
        page: The page.
        width: Pixels of the window.
        folder: For Chromium's files.

    Returns:
        Milliseconds until it is laid out, its height, its own width and the window's in pixels, and
        what the console said.
    """
    program = browser()
    assert program, "Chromium is not installed"
    frame = folder / f"frame-{width}.html"
    frame.write_text(SHOW.format(page=page.absolute().as_uri(), width=width))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--allow-file-access-from-files", "--hide-scrollbars", "--dump-dom"]
    command = [program, *options, f"--user-data-dir={folder / 'user'}", frame.absolute().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told: dict[str, Any] = json.loads(re.findall(r"told({.*?})told", done.stdout)[0])
    return told | {"console": [line for line in done.stderr.splitlines() if ":CONSOLE" in line]}


def measured(report: Path) -> dict[str, Any]:
    """Return what building the page of a report takes, and how it is shown."""
    content, page, program = built(report), report / PAGE, browser()
    if program:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        with tempfile.TemporaryDirectory() as folder:
            windows = {width: shown(page, width, Path(folder)) for width in WINDOWS}
        content |= {"browser": told.stdout.strip(), "shown": windows}
    return content | {"device": device_description(), "versions": library_versions()}


def built(report: Path) -> dict[str, Any]:
    """Build a page in a process of its own; return its seconds and peak memory, and the size."""
    command = [sys.executable, "-m", "bench.figures.report_page", "--build", str(report)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(told), "page_mb": round((report / PAGE).stat().st_size / 1e6, 2)}


def _build(report: Path) -> dict[str, float | None]:
    memory, start, processor = PeakMemory(), time.perf_counter(), time.process_time()
    write_page(report)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak_gb = memory.peak_mb and round(memory.peak_mb / 1000, 2)
    times = {"build_s": round(seconds, 1), "processor_s": round(processor, 1)}
    return {**times, "peak_memory_gb": peak_gb}


@grouped
def main(
    scale: Scale,
    build: Annotated[Path | None, typer.Option(help="Only build this report's page.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds, memory and size of a page, and how a browser loads it, as JSON."""
    if build:
        print(json.dumps(_build(build)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        content = {**asdict(scale), **measured(generate_evaluation(Path(temporary), scale))}
    print(json.dumps(content, indent=2))
    if out:
        write_json(out, content)


if __name__ == "__main__":
    typer.run(main)
