"""A detector trained by the shortest edge is deployed as two files, which run as one."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from core_parts import random_architecture, tiny
from export_parts import INFO, awake, saved
from PIL import Image
from simulated_gpu import simulated_gpu
from simulated_tensorrt import VERSIONS
from typer.testing import CliRunner

from adapt.data.images import Fitting, InputSize
from adapt.detector.file import load_detector, save_detector
from adapt.errors import AdaptError
from cli import app
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions
from export.graph.detector import export_detector, read_onnx_info
from export.run.parity import compare_artifacts
from export.run.predict import predict
from export.run.runner import open_runner

SHORTEST = InputSize(96, 150, "shortest-edge")
LANDSCAPE, PORTRAIT = InputSize(96, 160), InputSize(160, 96)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "detector.safetensors"
    network = random_architecture(tiny(), seed=0)  # small, so that it is exported fast
    info = replace(INFO, architecture=network, input=SHORTEST)
    save_detector(path, awake(info.build, LANDSCAPE), info)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, (width, height) in enumerate([(150, 96), (96, 150), (110, 110), (80, 100)]):
        noise = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pair(detector, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("deployed") / "d.onnx"
    return path, deploy(detector, path, Deployment(verify=photos))


@pytest.fixture(scope="module")
def landscape(detector, photos, tmp_path_factory):
    """A file for one orientation, and what its verification on all photos says."""
    path = tmp_path_factory.mktemp("one") / "one.onnx"
    return path, deploy(detector, path, Deployment(orientation="landscape", verify=photos))


def test_two_files_name_each_other_and_their_orientation(pair):
    path, summary = pair
    other = path.parent / "d.portrait.onnx"
    files = {"landscape": (path, LANDSCAPE), "portrait": (other, PORTRAIT)}
    for orientation, (file, size) in files.items():
        info, content = read_onnx_info(file)
        assert info.input == size
        assert content["fitting"]["orientation"] == orientation
        assert content["fitting"]["resize"] == SHORTEST.to_dict()
    assert (summary["input"], summary["portrait"]["input"]) == (
        "float32 1x3x96x160",
        "float32 1x3x160x96",
    )
    assert summary["portrait"]["onnx"] == str(other)
    assert content["fitting"]["companion"] == "d.onnx"


def test_either_file_opens_both_and_images_are_seen_as_in_training(pair):
    path, _ = pair
    for file in (path, path.parent / "d.portrait.onnx"):
        with open_runner("ort-cpu", file) as runner:
            assert runner.fitting == Fitting(SHORTEST, (LANDSCAPE, PORTRAIT))
    trained = Fitting.trained(SHORTEST)
    for size in [(96, 150), (150, 96), (97, 96), (3000, 100), (100, 3000), (640, 480)]:
        assert runner.fitting.scale(*size) == trained.scale(*size)


def test_verification_compares_pictures_as_well_as_inputs(pair):
    parity = pair[1]["parity"]
    assert parity["passed"]
    assert parity["images"] == 4
    assert (parity["fit"]["other_scale"], parity["fit"]["scale"]) == (0, 1)
    match = parity["fit"]["match"]
    assert match["matched"] > 2 * (match["missing"] + match["extra"])


def test_eager_and_deployed_pair_pass_parity(detector, pair, photos):
    with open_runner("torch", detector) as eager, open_runner("ort-cpu", pair[0]) as deployed:
        report = compare_artifacts(eager, deployed, photos)
    assert report.passed
    assert report.match.matched > 100
    assert report.fit.same


def test_one_file_says_how_it_sees_the_others(landscape, photos, capsys):
    path, summary = landscape
    assert summary["scale"] == "portrait images are seen at down to 0.64 of the scale of training"
    fit = summary["parity"]["fit"]
    assert not summary["parity"]["passed"]
    assert fit["other_scale"] == 2
    assert fit["scale"] == pytest.approx(96 / 150)
    assert fit["image"] == str(photos[1])
    capsys.readouterr()
    open_runner("ort-cpu", path)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "0.64 of the scale of training" in warning
    assert "was exported with --orientation landscape" in warning


def plain(text):
    """Text without the frame of a table."""
    return " ".join(text.replace("│", " ").split())


def test_parity_command_fails_where_portraits_are_smaller(detector, landscape, photos):
    arguments = ["parity", str(detector), str(landscape[0]), *map(str, photos)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "2 of 4 images are seen at another scale" in plain(result.stdout)
    assert CliRunner().invoke(app, [*arguments[:3], str(photos[0])]).exit_code == 0


def test_missing_companion_is_one_warning(pair, tmp_path, capsys):
    alone = shutil.copy(pair[0], tmp_path / "d.onnx")
    with open_runner("ort-cpu", alone) as runner:
        assert runner.fitting.canvases == (LANDSCAPE,)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: portrait images are seen at down to 0.64 of the scale")
    assert "d.portrait.onnx of the same export does not lie beside" in warning


def test_renamed_files_still_belong_together_but_not_those_of_another_export(
    pair, landscape, tmp_path, capsys
):
    portrait = pair[0].parent / "d.portrait.onnx"
    shutil.copy(pair[0], tmp_path / "x.onnx")
    shutil.copy(portrait, tmp_path / "x.portrait.onnx")
    with open_runner("ort-cpu", tmp_path / "x.onnx") as runner:
        assert len(runner.fitting.canvases) == 2
    shutil.copy(landscape[0], tmp_path / "x.onnx")
    with open_runner("ort-cpu", tmp_path / "x.portrait.onnx") as runner:
        assert runner.fitting.canvases == (PORTRAIT,)
    assert "landscape images are seen" in capsys.readouterr().err


def test_predictions_lie_inside_of_images_of_both_orientations(pair, photos, tmp_path):
    with open_runner("ort-cpu", pair[0]) as runner:
        content = predict(runner, photos, tmp_path, score_threshold=0.1)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert {found["image_id"] for found in content["annotations"]} == {1, 2, 3, 4}
    for found in content["annotations"]:
        x, y, width, height = found["bbox"]
        assert min(width, height) > 0
        assert x + width <= sizes[found["image_id"]][0] + 1e-3
        assert y + height <= sizes[found["image_id"]][1] + 1e-3


def test_int8_is_calibrated_for_each_orientation(detector, photos, tmp_path):
    wanted = Deployment(precision="int8", tail="none", calibration=photos)
    deploy(detector, tmp_path / "d.onnx", wanted)
    numbers = [
        read_onnx_info(tmp_path / name)[1]["calibration_batches"]
        for name in ("d.onnx", "d.portrait.onnx")
    ]
    assert numbers == [2, 2]
    with open_runner("ort-cpu", tmp_path / "d.onnx") as runner:
        assert len(runner.fitting.canvases) == 2


def test_engines_of_both_orientations_run_as_one(detector, photos, tmp_path):
    with simulated_gpu(VERSIONS[0]) as gpu:
        runtime = gpu.trt.__name__.replace("_", "-")
        wanted = Deployment(engine=BuildOptions(gpu.trt.__name__))
        summary = deploy(detector, tmp_path / "d.onnx", wanted)
        assert summary["portrait"]["engine"] == str(tmp_path / "d.portrait.plan")
        with (
            open_runner(runtime, tmp_path / "d.portrait.plan") as engines,
            open_runner("ort-cpu", tmp_path / "d.onnx") as graphs,
        ):
            assert engines.fitting == graphs.fitting == Fitting(SHORTEST, (LANDSCAPE, PORTRAIT))
            report = compare_artifacts(graphs, engines, photos)
            for canvas in engines.fitting.canvases:
                engines.bind(np.zeros((1, 3, canvas.height, canvas.width), np.uint8))()
    assert report.passed
    assert report.fit is None


def test_a_file_of_before_shows_in_parity_how_it_sees_portraits(detector, photos, tmp_path):
    """adapt 0.1 wrote a landscape letterbox, and nothing of how images were seen in training."""
    model, info = load_detector(detector)
    letterbox = replace(info, input=info.input.fixed())
    old = export_detector(model, letterbox, tmp_path / "old.onnx", provenance={})
    with open_runner("torch", detector) as eager, open_runner("ort-cpu", old) as deployed:
        report = compare_artifacts(eager, deployed, photos)
        assert compare_artifacts(eager, deployed, photos[:1]).passed
    assert report.same
    assert not report.passed
    assert (report.fit.other_scale, report.fit.image) == (2, str(photos[1]))


def test_orientation_of_a_letterbox_is_refused(exports, tmp_path):
    with pytest.raises(AdaptError, match=r"one canvas of 128x160 .*leave out --orientation"):
        deploy(saved(exports), tmp_path / "d.onnx", Deployment(orientation="portrait"))
