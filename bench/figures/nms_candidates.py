"""How much AP does a detector lose if fewer boxes reach non-maximum suppression?

python -m bench.figures.nms_candidates DETECTOR --data DATA --split test
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adapt.data.coco import CocoSplit, load_split
from adapt.detector.file import load_detector
from adapt.progress import console_stage
from bench.networks.evaluation import evaluate_artifact
from export.graph.detector import export_detector
from export.graph.options import GraphOptions

COUNTS = (100, 200, 300, 500, 1000, 2000)


def ap_by_candidates(detector: Path, split: CocoSplit, counts: Sequence[int]) -> dict[str, Any]:
    """Return AP in percent of eager torchvision, where all boxes reach NMS, and of exports.

    Args:
        detector: File that ``adapt finetune`` wrote.
        split: Images and boxes to evaluate on.
        counts: Numbers of boxes, of all levels together, that reach NMS.
    """
    model, info = load_detector(detector)
    aps = {}
    with console_stage("AP"), tempfile.TemporaryDirectory() as folder:
        aps["torchvision"] = 100 * evaluate_artifact(detector, split).ap
        for count in counts:
            fewer = replace(info, detector=replace(info.detector, nms_candidates=count))
            path = Path(folder, f"{count}.onnx")
            export_detector(model, fewer, path, GraphOptions("onnx-nms"), provenance={})
            aps[str(count)] = 100 * evaluate_artifact(path, split).ap
    return {name: round(ap, 2) for name, ap in aps.items()}


def main(
    detector: Annotated[Path, typer.Argument(help="Detector file that `adapt finetune` wrote.")],
    data: Annotated[Path, typer.Option(help="Data set: a folder in COCO, VOC or YOLO format.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
) -> None:
    """Print AP by number of candidates as JSON."""
    loaded = load_split(data, split)
    print(json.dumps({"images": len(loaded), "ap": ap_by_candidates(detector, loaded, COUNTS)}))


if __name__ == "__main__":
    typer.run(main)
