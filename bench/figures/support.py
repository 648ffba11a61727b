"""What runs with which source and which head? (search, mapping, training, export, engine)

    python -m bench.figures.support --out FILE [--source NAME ...] [--head NAME ...]

Every combination takes the whole way on a few generated images, two steps of every training: what
fails is told, not left out. It says that a step works, nothing of how good a detector gets. Where
the published weights of a source of torchvision cannot be had, random ones in their form stand for
them, and the row says so.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from torch import nn
from torchvision.models import get_model, list_models

from adapt.architecture import Architecture
from adapt.artifacts import library_versions
from adapt.data.coco import CocoSplit
from adapt.data.synthetic import generate
from adapt.detector.config import HeadKind
from adapt.errors import AdaptError
from adapt.network.weights import find_weights
from adapt.runtime import Precision
from adapt.sources import SOURCES
from bench.latency.provenance import device_description
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.recipe import Recipe
from search.recipe.search_cost import madds_cost
from search.score.run import run_score
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

STEPS = 2
IMAGES = 16
SIDE = 128
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
RAN = "ran"


class Way:
    """The way of one combination.

    Args:
        source: Name of the pretrained backbone.
        head: Kind of the heads.
        data: Data set of generated images.
        folder: Empty folder for its files.
        weights: File of the source's parameters.
    """

    def __init__(
        self, source: str, head: HeadKind, data: Path, folder: Path, weights: Path
    ) -> None:
        changes = {
            "weights": str(weights),
            "data": {"root": str(data), "workers": 0},
            "space": {"preset": source, "width_grid": 64},
            "input": {"height": SIDE, "width": SIDE},
            "detector": {
                "fpn_width": 32,
                "head_depth": 1,
                "anchor_size": 16,
                "head": head,
                # Hardly trained heads are sure of nothing; without detections none could differ.
                "score_threshold": 0.001,
            },
            "search": {"weights": {"epochs": 2, "batch_size": 2}, "warmup_epochs": 1},
            # Two steps at the usual rate can make a detector whose values float32 rounds coarsely.
            "finetune": {"mapping": "principal", "batch_size": 4, "epochs": 1, "lr": 0.001},
        }
        self.recipe = Recipe().changed(changes, "this program")
        self.train: CocoSplit = self.recipe.split(self.recipe.data.train)
        self.folder = folder
        self.images = [image.path for image in self.train.images[:4]]

    def steps(self) -> dict[str, Callable[[], object]]:
        """Return every step by its name, in order; later ones need the files of earlier ones."""
        source, derived = self.folder / "source.safetensors", self.folder / "derived.safetensors"
        scored = self.recipe.with_search(score_networks=4)
        steps: dict[str, Callable[[], object]] = {
            "train": lambda: self._train(self.recipe.source, source),
            "score": lambda: run_score(scored, source, self.folder / "scores.json"),
            "search": self._search,
            "derive and map": lambda: self._train(self._derived(), derived),
            "export, same detections": lambda: self._compare(derived),
        }
        if self.recipe.detector.head == "faster-rcnn":  # ONNX Runtime only
            return steps
        return steps | {
            f"engine {precision}": partial(self._build, derived, precision)
            for precision in PRECISIONS
        }

    def _train(self, architecture: Architecture, path: Path) -> None:
        run_finetune(self.recipe, architecture, self.train, path, Session(limit_steps=STEPS))

    def _search(self) -> None:
        cost = madds_cost(self.recipe, len(self.train.class_names))
        run_search(self.recipe, self.train, cost, self.folder, Session(limit_steps=STEPS))

    def _derived(self) -> Architecture:
        path = self.folder / "arch.json"
        derive(SearchFiles(self.folder / "supernet.pt", None), path)
        return Architecture.load(path)

    def _compare(self, detector: Path) -> None:
        """Export, which refuses a file that detects something else than PyTorch."""
        deployment = Deployment(verify=self.images)
        exported = deploy(detector, self.folder / "compared.onnx", deployment)
        if not exported["parity"]["match"]["matched"]:
            raise AdaptError("nothing was detected, so that nothing was compared")

    def _build(self, detector: Path, precision: Precision) -> None:
        deployment = Deployment(
            precision=precision,
            calibration=self.images if precision == "int8" else (),
            engine=BuildOptions(flavour="tensorrt_rtx"),
        )
        deploy(detector, self.folder / f"{precision}.onnx", deployment)


def walked(way: Way) -> dict[str, str]:
    """Take the steps of a way; return :data:`RAN` or the error of each."""
    results = {}
    for name, step in way.steps().items():
        try:
            step()
            results[name] = RAN
        except (AdaptError, RuntimeError, ValueError) as error:
            results[name] = f"{type(error).__name__}: {error}"
    return results


def weights_of(source: str, folder: Path) -> tuple[str, Path]:
    """Return whether a source's weights are the ``published`` ones or ``random``, and their file.

    Raises:
        AdaptError: If there are none, and torchvision does not know the source's form.
    """
    try:
        return "published", find_weights(source)
    except AdaptError:
        if source not in list_models():
            raise
    torch.manual_seed(0)
    model, path = get_model(source).train(), folder / f"{source}.pth"
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.momentum = 1.0
    # Statistics of data, as published ones are: without, maps grow from block to block.
    with torch.no_grad():
        model(torch.randn(8, 3, SIDE, SIDE))
    torch.save(model.state_dict(), path)
    return "random", path


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; repeat for more.")
    ] = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="Only this head; repeat for more.")
    ] = None,
) -> None:
    """Print what ran as JSON."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = generate(Path(temporary, "data"), train=IMAGES, val=IMAGES, test=4)
        for source, head in product(sources or SOURCES, heads or get_args(HeadKind)):
            folder = Path(temporary, f"{source}-{head}")
            folder.mkdir()
            kind, weights = weights_of(source, folder)
            results = walked(Way(source, head, data, folder, weights))
            rows.append({"source": source, "head": head, "weights": kind, "steps": results})
            typer.echo(json.dumps(rows[-1]), err=True)
    content = {"rows": rows, "device": device_description(), "versions": library_versions()}
    text = json.dumps(content, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
    if any(result != RAN for row in rows for result in row["steps"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
