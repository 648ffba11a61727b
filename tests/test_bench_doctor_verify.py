"""`adapt doctor --verify`: which steps, what is told, and that a report names no place."""

import json
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from core_parts import once
from simulated_gpu import simulated_gpu
from simulated_tensorrt import VERSIONS
from test_bench_doctor_checks import written
from typer.testing import CliRunner

from bench.doctor import verify
from bench.doctor.checks import check_export
from bench.doctor.contained import Outcome, Step
from bench.doctor.cuda import CudaStack
from bench.doctor.runtimes import RuntimeState
from bench.doctor.tiny import Files
from bench.doctor.verify import Survey, Verification, anonymous, planned, run_steps
from cli import app

NO_GPU = CudaStack("", "", "", {}, "Found no NVIDIA driver")
USABLE = RuntimeState("1.0", usable=True)
BUILDER = RuntimeState("1.7", False, True, "no CUDA GPU found", "run it on a machine with a GPU")
MISSING = RuntimeState(None, False, False, "not installed", "run `pip install it`")
HERE = Survey(False, NO_GPU, {"ort-cpu": USABLE, "tensorrt-rtx": BUILDER, "tensorrt": MISSING}, {})
FILES = Files(Path("files"))


def skipped(steps: Sequence[Step]) -> dict[str, str]:
    return {step.title: step.skip for step in steps if step.skip}


def test_without_a_gpu_what_builds_is_built_and_the_rest_says_why_not() -> None:
    steps = planned(FILES, HERE)
    done = [step.title for step in steps if not step.skip]
    for precision in ("fp32", "fp16", "int8"):
        assert f"ort-cpu {precision}: outputs" in done
        assert f"tensorrt-rtx {precision}: build" in done
        skip = skipped(steps)[f"tensorrt-rtx {precision}: outputs"]
        assert skip.startswith("tensorrt-rtx builds here, and cannot run: no CUDA GPU found; run")
    assert skipped(steps)["tensorrt"] == "not installed; run `pip install it`"
    assert skipped(steps)["training, amp bf16"].startswith("no CUDA GPU found; ")
    assert not [title for title in done if "CUDA graph" in title]
    needs = {step.title: step.needs for step in steps}
    assert needs["ort-cpu int8: outputs"] == ("ONNX int8",)
    assert needs["tensorrt-rtx int8: build"] == ("ONNX int8 and fp16",)
    assert {"ONNX int8", "ONNX int8 and fp16"} < set(done)


def test_a_gpu_leaves_no_step_out() -> None:
    runs = RuntimeState("10.16", usable=True, builds=True)
    stack = CudaStack("NVIDIA A100", "580.65", "13.0", {}, "")
    steps = planned(FILES, Survey(True, stack, {"tensorrt": runs, "ort-cuda": USABLE}, {}))
    assert not skipped(steps)
    titles = [step.title for step in steps]
    assert {"tensorrt fp16: CUDA graph", "tensorrt fp16: cost table", "training, amp fp16"} <= {
        *titles
    }
    for position, step in enumerate(steps):  # a step comes after those that it needs
        assert set(step.needs) <= set(titles[:position])
    limits = [step.arguments[-1] for step in steps if "timing" in step.title]
    assert limits == ["cuda", "cuda"]


def test_engines_of_a_gpu_pass_in_processes_of_their_own(made: Path) -> None:
    files = written(made)
    with simulated_gpu("10.16.0.72"):
        survey = replace(Survey.here(), runtimes={"tensorrt": USABLE_ENGINE})
        steps = [
            replace(step, needs=tuple(n for n in step.needs if not n.startswith("ONNX")))
            for step in planned(files, survey)
            if step.title.startswith("tensorrt fp16") and "cost table" not in step.title
        ]
        outcomes = run_steps(steps)
    assert [str(o) for o in outcomes if o.status != "PASS"] == []
    assert len(outcomes) == 5


USABLE_ENGINE = RuntimeState("10.16", usable=True, builds=True)


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    """All that engines are built from."""

    def write(folder: Path) -> None:
        shutil.copytree(written(made).folder, folder)
        for runtime, precision in (("ort-cpu", "fp32"), ("tensorrt", "int8")):
            check_export(Files(folder), runtime, precision)

    return once(made / "doctor-exports", write)


@pytest.mark.slow
@pytest.mark.parametrize("release", VERSIONS)
def test_all_of_a_gpu_but_training_passes(release: str, exported: Path, tmp_path: Path) -> None:
    files = Files(Path(shutil.copytree(exported, tmp_path / "files")))
    files.timing_cache.unlink(missing_ok=True)  # of another release
    done = ("a tiny detector", "ONNX")
    real = ("training", "fp32 of PyTorch")  # take tensors that a simulated GPU has not
    with simulated_gpu(release) as gpu:
        runtime = gpu.trt.__name__.replace("_", "-")
        survey = replace(Survey.here(), runtimes={runtime: USABLE_ENGINE})
        outcomes = run_steps(
            [
                replace(step, needs=tuple(n for n in step.needs if not n.startswith(done)))
                for step in planned(files, survey)
                if not step.title.startswith((*done, *real))
            ]
        )
    assert [str(o) for o in outcomes if o.status != "PASS"] == []
    assert len(outcomes) == 2 + 3 * 4 + 2


@pytest.mark.slow
def test_all_of_this_machine_passes_or_says_why_not() -> None:
    done = verify.verify()
    busy = ("timing", "cost table")  # others may use this machine too
    wrong = [o for o in done.outcomes if o.status == "FAIL" and not o.title.endswith(busy)]
    assert wrong == []
    assert "ort-cpu fp32, ort-cpu fp16, ort-cpu int8" in done.summary()[1]


def fails() -> None:
    raise RuntimeError(f"cannot open {Path.home()}/models/a.onnx on {socket.gethostname()}")


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Step("a: outputs", list), Step("b", fails), Step("c", skip="no GPU")]
    monkeypatch.setattr(verify, "planned", lambda *_: steps)
    monkeypatch.setattr(verify, "contained", lambda *_: (HERE_DESCRIBED, ""))


HERE_DESCRIBED = replace(
    HERE, machine={"device": {"device": "a processor"}, "weights": "/home/x/w"}
)


@pytest.mark.usefixtures("two_steps")
def test_a_failed_step_is_exit_code_1_with_json_on_stdout_and_in_the_report(tmp_path: Path) -> None:
    report = tmp_path / "folder" / "report.json"
    result = CliRunner().invoke(app, ["doctor", "--verify", "--report", str(report), "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content == json.loads(report.read_text())
    assert [step["status"] for step in content["steps"]] == ["PASS", "FAIL", "SKIP"]
    assert content["summary"][1] == "verified on a processor: a"
    assert content["passed"] is False
    assert "FAIL  b: RuntimeError: cannot open .../a.onnx on HOST" in result.stderr
    for private in (str(Path.home()), socket.gethostname(), "/home"):
        assert private not in report.read_text()


@pytest.mark.usefixtures("two_steps")
def test_people_read_a_line_per_step_and_what_was_verified() -> None:
    lines = CliRunner().invoke(app, ["doctor", "--verify"]).stdout.splitlines()
    assert [line[:4] for line in lines[:3]] == ["PASS", "FAIL", "SKIP"]
    assert lines[3].startswith("1 PASS, 1 FAIL, 1 SKIP in ")
    assert lines[4] == "verified on a processor: a"


def test_engines_that_were_built_and_not_run_are_told_apart() -> None:
    titles = ("rtx fp16: build", "trt fp16: build", "trt fp16: outputs")
    outcomes = tuple(Outcome(title, "PASS") for title in titles)
    machine = {"device": {"device": "a processor", "gpu": {"name": "an A100"}}}
    assert Verification(outcomes, machine, 1.0).summary()[1] == (
        "verified on an A100: trt fp16; built but never run: rtx fp16"
    )


def test_a_report_without_a_verification_is_refused() -> None:
    result = CliRunner().invoke(app, ["doctor", "--report", "report.json"])
    assert result.exit_code == 1
    assert "pass --verify too" in result.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no /home/me/adapt/a.onnx here", "no .../a.onnx here"),
        (r"C:\Users\me\a.onnx is damaged", ".../a.onnx is damaged"),
        ("~/data/x/y.png, 'quoted /tmp/b/c'", ".../y.png, 'quoted .../c'"),
        ("see https://onnxruntime.ai/docs/install", "see https://onnxruntime.ai/docs/install"),
        ("fp32/fp16 of backbone.body.1/Conv", "fp32/fp16 of backbone.body.1/Conv"),
        (f"on {socket.gethostname()}:", "on HOST:"),
    ],
)
def test_places_of_this_machine_are_left_out(text: str, shown: str) -> None:
    assert anonymous({"a": [text, 1]}) == {"a": [shown, 1]}


def test_the_report_of_this_machine_names_none_of_its_places() -> None:
    text = json.dumps(anonymous(Survey.here().machine))
    for private in (str(Path.home()) + os.sep, os.getcwd(), socket.gethostname()):
        assert private not in text
