"""A detector that saw portraits and landscapes at one scale still does when it is deployed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import recipe_of
from core_parts import once, random_architecture, tiny
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from adapt.data.coco import load_split
from adapt.data.images import InputSize
from adapt.detector.config import RetinaNetConfig
from adapt.errors import AdaptError
from bench.acceptance.ap_gate import GateOptions, deploy_within
from bench.latency.timing import Protocol
from bench.networks.artifacts import on_runtimes
from bench.networks.evaluation import evaluate_artifact
from bench.networks.measure import Timing, compare
from cli import app
from export.deploy import Deployment, deploy
from search.recipe.optimisation import FinetuneRecipe
from search.train.finetune import run_finetune

COLOURS = ("red", "blue", "green")
SIZES = [(96, 64), (64, 96)] * 4


def draw(root):
    """Write eight pictures of two squares each, whose colour is their class."""
    chance, images, annotations = np.random.default_rng(3), [], []
    for number, size in enumerate(SIZES, start=1):
        picture = Image.new("RGB", size, (110, 110, 110))
        for half in (0, 1):
            side, label = int(chance.integers(18, 40)), int(chance.integers(0, 3))
            along = half * 48 + int(chance.integers(0, 48 - side))
            across = int(chance.integers(0, 64 - side))
            x, y = (along, across) if size[0] > size[1] else (across, along)
            square = [x, y, x + side - 1, y + side - 1]
            ImageDraw.Draw(picture).rectangle(square, fill=COLOURS[label])
            annotation = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            annotation |= {"category_id": label + 1, "bbox": [x, y, side, side], "area": side**2}
            annotations.append(annotation)
        (root / "images").mkdir(parents=True, exist_ok=True)
        picture.save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        images[-1] |= {"width": size[0], "height": size[1]}
    (root / "annotations").mkdir()
    categories = [{"id": n, "name": name} for n, name in enumerate(COLOURS, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "train.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def split(made):
    return load_split(once(made / "both-orientations", draw), "train")


@pytest.fixture(scope="module")
def detector(made, split):
    """A detector that knows the split by heart."""
    recipe = recipe_of(made / "unused.toml")
    recipe = replace(
        recipe,
        data=replace(recipe.data, flip=False),
        input=InputSize(64, 96, "shortest-edge"),
        detector=RetinaNetConfig(fpn_width=16, head_depth=1, anchor_size=16),
        finetune=FinetuneRecipe(
            epochs=70,
            batch_size=4,
            optimizer="adamw",
            lr=0.01,
            schedule="one-cycle",
            warmup_steps=1,
        ),
    )
    network = random_architecture(tiny(), seed=0)

    def train(path):
        path.mkdir()
        run_finetune(recipe, network, split, path / "d.safetensors")

    return once(made / "by-shortest-edge", train) / "d.safetensors"


@pytest.fixture(scope="module")
def pair(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "d.onnx"
    deploy(detector, path, Deployment())
    return path


def test_deployed_pair_has_the_ap_of_eager(detector, pair, split):
    eager, deployed = (evaluate_artifact(file, split).ap for file in (detector, pair))
    assert eager > 0.7
    assert deployed == pytest.approx(eager, abs=0.001)


def test_pictures_of_a_camera_held_upside_down_have_the_same_ap(pair, split, tmp_path):
    """Neither width nor height tells that they are turned; the boxes are as viewers show them."""
    exif = Image.Exif()
    exif[0x0112] = 3
    root = shutil.copytree(split.annotations.parents[1], tmp_path / "turned")
    for file in (root / "images").iterdir():
        shown = Image.open(file).convert("RGB")
        shown.transpose(Image.Transpose.ROTATE_180).save(file, exif=exif)
    turned = load_split(root, "train")
    assert evaluate_artifact(pair, turned).ap == evaluate_artifact(pair, split).ap


def test_gate_names_the_canvas_as_the_reason_and_writes_nothing(detector, split, tmp_path):
    options, data = Deployment(orientation="landscape"), split.annotations.parents[1]
    gate = GateOptions(5.0, data, "train")
    with pytest.raises(AdaptError) as refused:
        deploy_within(gate, detector, tmp_path / "d.onnx", options)
    sentence = str(refused.value)
    assert "4 of 8 images" in sentence
    assert "at down to 0.67 of the scale" in sentence
    assert "export with --orientation both" in sentence
    assert "precision" not in sentence
    assert not list(tmp_path.iterdir())


def test_gate_accepts_the_pair(detector, split, tmp_path):
    gate = GateOptions(0.5, split.annotations.parents[1], "train")
    summary = deploy_within(gate, detector, tmp_path / "d.onnx", Deployment())
    assert summary["ap_gate"]["drop"] == pytest.approx(0, abs=0.1)
    assert {file.name for file in tmp_path.iterdir()} == {"d.onnx", "d.portrait.onnx"}


def test_benchmark_times_both_files_of_one_detector(pair, split):
    files = sorted(pair.parent.glob("*.onnx"))
    artifacts = on_runtimes(files)
    assert artifacts == {"d": ("ort-cpu", pair)}
    assert on_runtimes([files[1]]) == artifacts
    quick = Timing(protocol=Protocol(rounds=2, round_ms=1, retries=0))
    result = compare(artifacts, split, quick)
    assert [(entry.name, entry.height, entry.width) for entry in result.entries] == [
        ("d", 64, 96),
        ("d (portrait)", 96, 64),
    ]
    landscape, portrait = result.entries
    assert landscape.metrics == portrait.metrics
    assert (landscape.artifact, portrait.artifact) == tuple(files)


def test_eval_of_either_file_is_that_of_both_and_warns_of_nothing(pair, split):
    data = ["--data", str(split.annotations.parents[1]), "--split", "train", "--json"]
    both = [
        CliRunner().invoke(app, ["eval", str(pair.parent / name), *data])
        for name in ("d.onnx", "d.portrait.onnx")
    ]
    assert both[0].stdout == both[1].stdout
    assert json.loads(both[0].stdout)["ap"] > 0.7
    assert "warning" not in both[0].stderr
