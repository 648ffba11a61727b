"""What users get wrong when they deploy is one sentence, and nothing is left behind."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_parts import exported, saved
from onnx import TensorProto, helper
from PIL import Image
from typer.testing import CliRunner

from adapt.data.synthetic import generate
from cli import app

NO_GPU = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def files(exports, tmp_path_factory):
    """A sound detector and its ONNX file, beside everything that is not."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(saved(exports), folder)
    whole = Path(shutil.copy(exported(exports), folder))
    (folder / "half.onnx").write_bytes(whole.read_bytes()[:5000])
    (folder / "half.safetensors").write_bytes((folder / "detector.safetensors").read_bytes()[:5000])
    save_foreign(folder / "foreign.onnx")
    (folder / "alone.plan").write_bytes(b"engine")
    save_engine(folder / "old.plan", "tensorrt", whole)
    save_engine(folder / "rtx.plan", "tensorrt_rtx", whole)
    generate(folder / "set", train=1, val=1, size=(128, 128))
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("no image")
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "photos" / "a.png")
    (folder / "sixteen").mkdir()
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(folder / "sixteen" / "a.tiff")
    (folder / "huge").mkdir()
    Image.new("1", (30000, 20000)).save(folder / "huge" / "a.png")  # 600 megapixels, one bit each
    (folder / "cut").mkdir()
    Image.effect_noise((60, 60), 9).save(folder / "cut" / "a.png")
    (folder / "cut" / "a.png").write_bytes((folder / "cut" / "a.png").read_bytes()[:900])
    (folder / "broken").mkdir()
    (folder / "broken" / "a.jpg").write_text("no image")
    return folder


def save_foreign(path):
    """A detector of another tool: other outputs, no description."""
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["output0"])], "yolo", [value], [output]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)


def save_engine(path, flavour, source):
    """What an engine of another version leaves: the file and its description."""
    description = json.loads(onnx.load(source).metadata_props[0].value)
    path.write_bytes(b"engine")
    content = {"format": "adapt-engine", "version": 1, "flavour": flavour, "onnx": description}
    content |= {"tensorrt_version": "9.0", "target": "NVIDIA T4"}
    path.with_name(f"{path.name}.json").write_text(json.dumps(content))


EXPORT = ["export", "detector.safetensors", "--out", "out/a.onnx"]
UNREADABLE = {
    "sixteen": "a.tiff has pixels of mode I;16; convert it to 8 bits a channel",
    "huge": "a.png has 600 megapixels, more than the limit of 500; scale it down, or raise the",
    "cut": "a.png cannot be decoded",
}
READ_IMAGES = [
    ["predict", "tensor-nms.onnx"],
    ["parity", "detector.safetensors", "tensor-nms.onnx"],
    [*EXPORT, "--verify"],
    [*EXPORT, "--precision", "int8", "--calibration"],
]
BAD = [
    *(([*read, name], 1, why) for read in READ_IMAGES for name, why in UNREADABLE.items()),
    (["predict", "half.onnx", "photos"], 1, "half.onnx is not a readable ONNX file"),
    (["eval", "half.onnx", "--data", "set"], 1, "half.onnx is not a readable ONNX file"),
    (["export", "half.safetensors"], 1, "half.safetensors is not a readable safetensors file"),
    (["predict", "foreign.onnx", "photos"], 1, "foreign.onnx is not an adapt onnx-detector file"),
    (["parity", "tensor-nms.onnx", "foreign.onnx", "photos"], 1, "foreign.onnx is not an adapt"),
    (["predict", "alone.plan", "photos"], 1, "alone.plan.json does not exist"),
    (["predict", "tensor-nms.onnx", "texts"], 1, "texts holds no image"),
    (["predict", "tensor-nms.onnx", "broken"], 1, "a.jpg cannot be decoded"),
    (["predict", "tensor-nms.onnx", "photos", "--runtime", "ort-tpu"], 1, "got 'ort-tpu'"),
    (["predict", "tensor-nms.onnx", "photos", "--runtime", "tensorrt"], 1, "runs .plan files"),
    ([*EXPORT, "--precision", "int8"], 1, "int8 needs images to calibrate on"),
    ([*EXPORT, "--precision", "int8", "--calibration", "texts"], 1, "texts holds no image"),
    ([*EXPORT, "--precision", "int8", "--calibration", "broken"], 1, "a.jpg cannot be decoded"),
    ([*EXPORT, "--precision", "fp8"], 2, "fp8"),
    ([*EXPORT, "--tail", "plugin"], 2, "plugin"),
    ([*EXPORT, "--dynamic"], 1, "dynamic batch needs room for 2 images"),
    ([*EXPORT, "--trt", "--tuned-batch", "4"], 1, "pass --dynamic and --batch 4 or more"),
    ([*EXPORT, "--trt", "--level", "9"], 2, "level"),
    ([*EXPORT, "--level", "1"], 1, "pass --trt with them"),
    ([*EXPORT, "--trt", "--timing-cache", "photos"], 1, "photos is a folder; name a file"),
    (["export", "detector.safetensors", "--out", "/proc/x/a.onnx"], 1, "cannot write"),
    (
        ["export", "detector.safetensors", "--out", "detector.safetensors/a.onnx"],
        1,
        "cannot write",
    ),
]
if NO_GPU:
    BAD += [
        (["predict", "rtx.plan", "photos"], 1, "rtx.plan needs an NVIDIA GPU to run"),
        (["predict", "tensor-nms.onnx", "photos", "--runtime", "ort-cuda"], 1, "does not load"),
    ]


@pytest.mark.parametrize(("command", "code", "fragment"), BAD, ids=lambda x: str(x)[:60])
def test_one_sentence_and_nothing_left(command, code, fragment, files, monkeypatch):
    monkeypatch.chdir(files)
    before = set(files.rglob("*"))
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert fragment in result.output
    if code == 1:
        (sentence,) = result.stderr.strip().splitlines()
        assert sentence.startswith("error: ")
    assert {p.name for p in set(files.rglob("*")) - before} <= {"out", "runs", "predictions"}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(files, tmp_path):
    """Files may not grow beyond 100 kB, which the operating system says as it does of a disk."""
    command = ["export", str(files / "detector.safetensors"), "--out", str(tmp_path / "a.onnx")]
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        done = CliRunner().invoke(app, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    assert done.exit_code == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert "a.onnx: File too large; free some space or choose another --out" in sentence
    assert not list(tmp_path.iterdir())
