"""What is verified on a machine in its first hour, and what came out? (`adapt doctor --verify`)"""

import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapt.artifacts import header
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Precision
from bench.doctor.checks import (
    check_batches,
    check_build,
    check_detector,
    check_export,
    check_graph,
    check_kernels,
    check_outputs,
)
from bench.doctor.contained import Outcome, Step, contained, run_step
from bench.doctor.cuda import CudaStack
from bench.doctor.measuring import check_costs, check_libraries, check_sensors, check_timing
from bench.doctor.runtimes import RuntimeState, diagnose, runtime_state, to_json
from bench.doctor.tiny import PRECISIONS, Files
from bench.doctor.training import check_fp32, check_training
from export.graph.precision import int8_for, rest_precision
from export.run.runner import RUNTIMES

SURVEY_SECONDS = 120.0
EXPORT_SECONDS = 300.0
BUILD_SECONDS = 900.0  # of two engines; the first ones find their tactics
COSTS_SECONDS = 1800.0
CONDITIONS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NVIDIA_TF32_OVERRIDE")
DETECTOR = "a tiny detector"


@dataclass(frozen=True)
class Verification:
    """What was verified.

    Attributes:
        outcomes: What became of every step.
        machine: What :func:`bench.doctor.runtimes.diagnose` found.
        seconds: How long all took.
    """

    outcomes: tuple[Outcome, ...]
    machine: dict[str, Any]
    seconds: float

    @property
    def failed(self) -> int:
        """Number of steps that failed."""
        return self._count("FAIL")

    def summary(self) -> list[str]:
        """Return what was verified on which hardware, in two lines."""
        device = self.machine["device"]
        name = device.get("gpu", {}).get("name") or device["device"]
        passed = [o.title for o in self.outcomes if o.status == "PASS"]
        ran = [title.removesuffix(": outputs") for title in passed if title.endswith(": outputs")]
        built = [title.removesuffix(": build") for title in passed if title.endswith(": build")]
        only = [title for title in built if title not in ran]
        tail = f"; built but never run: {', '.join(only)}" if only else ""
        counts = ", ".join(f"{self._count(status)} {status}" for status in ("PASS", "FAIL", "SKIP"))
        return [
            f"{counts} in {self.seconds:.0f} s",
            f"verified on {name}: {', '.join(ran) or 'nothing'}{tail}",
        ]

    def _count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content without paths and names of this machine."""
        content = header(
            "verification",
            time=round(time.time()),
            machine=self.machine,
            environment={name: os.environ[name] for name in CONDITIONS if name in os.environ},
            summary=self.summary(),
            passed=self.failed == 0,
            steps=[outcome.to_dict() for outcome in self.outcomes],
        )
        return {name: anonymous(value) for name, value in content.items()}


@dataclass(frozen=True)
class Survey:
    """What a verification is planned by.

    Attributes:
        gpu: Whether PyTorch finds a GPU.
        cuda: What of CUDA is here.
        runtimes: What of each runtime works.
        machine: All that ``adapt doctor`` says.
    """

    gpu: bool
    cuda: CudaStack
    runtimes: Mapping[str, RuntimeState]
    machine: dict[str, Any]

    @classmethod
    def here(cls) -> "Survey":
        """Look at this machine; in a process of its own, since drivers crash and hang too."""
        states = {runtime: runtime_state(runtime) for runtime in RUNTIMES}
        return cls(torch.cuda.is_available(), CudaStack.here(), states, to_json(diagnose()))

    @property
    def no_gpu(self) -> str:
        """Why nothing can run on a GPU; empty if it can."""
        return "" if self.gpu else f"{self.cuda.problem}; {self.cuda.fix}"


def verify(
    tell: Callable[[Outcome], None] = lambda _: None, *, progress: Progress = silent
) -> Verification:
    """Verify all that this machine can do; nothing that happens in a step stops the others.

    Args:
        tell: Called with every outcome.
        progress: Called with (done, total) and the step under way.

    Raises:
        AdaptError: If not even the runtimes can be asked what they are.
    """
    start = time.perf_counter()
    survey, problem = contained(Survey.here, (), SURVEY_SECONDS)
    if problem:
        raise AdaptError(f"this machine cannot be looked at: {problem}; try `adapt doctor`")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_steps(planned(Files(Path(folder)), survey), tell, progress=progress)
    return Verification(tuple(outcomes), survey.machine, time.perf_counter() - start)


def run_steps(
    steps: Sequence[Step],
    tell: Callable[[Outcome], None] = lambda _: None,
    *,
    progress: Progress = silent,
) -> list[Outcome]:
    """Run steps one after the other; see :func:`verify`."""
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        progress(number, len(steps), step.title)
        passed = [outcome.title for outcome in outcomes if outcome.status == "PASS"]
        outcome = run_step(step, passed)
        # What a step says may name places of this machine, and users copy it into issues.
        outcomes.append(replace(outcome, reason=anonymous(outcome.reason)))
        tell(outcomes[-1])
    progress(len(steps), len(steps))
    return outcomes


def planned(files: Files, survey: Survey) -> list[Step]:
    """Return the steps for a machine, with those that it cannot do and why."""
    states = survey.runtimes.items()
    runtimes = [name for name, of in states if of.builds or (of.usable and name == "ort-cuda")]
    exports = {_export(r, p): (r, p) for r in (*runtimes, "ort-cpu") for p in PRECISIONS}
    steps = [*_device_steps(survey), Step(DETECTOR, check_detector, (files,))]
    for title, of in exports.items():
        steps.append(Step(title, check_export, (files, *of), EXPORT_SECONDS, needs=(DETECTOR,)))
    for runtime in survey.runtimes:
        steps += _runtime_steps(files, runtime, survey)
    for amp in ("off", "bf16", "fp16"):
        title, arguments = f"training, amp {amp}", (files, amp)
        steps.append(Step(title, check_training, arguments, needs=(DETECTOR,), skip=survey.no_gpu))
    return steps


def _export(runtime: str, precision: Precision) -> str:
    """Return the title of the step that exports what a runtime deploys."""
    if precision == "int8" and int8_for(runtime) == "tensorrt":
        rest = rest_precision(runtime, precision)
        return "ONNX int8, symmetric" if rest == "fp32" else f"ONNX int8 and {rest}"
    return f"ONNX {precision}"


def _device_steps(survey: Survey) -> list[Step]:
    driver = "" if survey.cuda.gpu else survey.no_gpu
    return [
        Step("driver and libraries", check_libraries, skip=driver),
        Step("sensors of the GPU", check_sensors, skip=driver),
        Step("fp32 of PyTorch is no TF32", check_fp32, skip=survey.no_gpu),
    ]


def _runtime_steps(files: Files, runtime: str, survey: Survey) -> Iterator[Step]:
    state = survey.runtimes[runtime]
    if not (state.usable or state.builds):
        yield Step(runtime, skip=f"{state.problem}; {state.fix}")
        return
    for precision in ("fp32",) if runtime == "torch" else PRECISIONS:
        yield from _artifact_steps(files, runtime, precision, state)
    if not state.usable:
        return
    kind = "cuda" if survey.gpu and runtime != "ort-cpu" else "cpu"
    deployed: Precision = "fp16" if state.builds else "fp32"
    name, timed = f"{runtime} {deployed}", (files, runtime, deployed, kind)
    needs = (f"{name}: outputs",)
    yield Step(f"{name}: timing", check_timing, timed, needs=needs)
    if runtime != "torch":  # eager inference is compared with, not searched for
        costs = f"{name}: cost table"
        yield Step(costs, check_costs, timed, seconds=COSTS_SECONDS, needs=needs)


def _artifact_steps(
    files: Files, runtime: str, precision: Precision, state: RuntimeState
) -> Iterator[Step]:
    """Yield the steps of one runtime in one precision."""
    name, arguments = f"{runtime} {precision}", (files, runtime, precision)
    needs = (DETECTOR,) if runtime == "torch" else (_export(runtime, precision),)
    outputs = f"{name}: outputs"
    if state.builds:
        build = f"{name}: build"
        yield Step(build, check_build, arguments, seconds=BUILD_SECONDS, needs=needs)
        needs = (build,)
    if not state.usable:
        reason = f"{runtime} builds here, and cannot run: {state.problem}; {state.fix}"
        yield Step(outputs, skip=reason)
        return
    yield Step(outputs, check_outputs, arguments, needs=needs)
    yield Step(f"{name}: batch 1, 3, 1", check_batches, arguments, needs=(outputs,))
    if runtime.startswith("ort"):
        yield Step(f"{name}: kernels", check_kernels, arguments, needs=(outputs,))
    if state.builds:
        yield Step(f"{name}: CUDA graph", check_graph, arguments, needs=(outputs,))


def anonymous(content: Any) -> Any:
    """Return JSON content without folders and names of this machine."""
    if isinstance(content, dict):
        return {name: anonymous(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [anonymous(value) for value in content]
    if not isinstance(content, str):
        return content
    text = _FOLDERS.sub(".../", content)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


# Absolute paths up to their last part, on Linux and on Windows; not the middle of an address.
_FOLDERS = re.compile(r"(?<![\w:/.\\])(?:[A-Za-z]:[\\/]|~?/)(?:[^\s/\\'\"]+[/\\])+")


def show_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """Print an outcome at once; on stderr if stdout is for JSON."""
    print(outcome, file=sys.stderr if as_json else sys.stdout, flush=True)
