"""How long will every stage of a run take on this machine? (`adapt run --dry-run`)

One detector, the source's, is timed as the stages will run it; training is counted in floating
point operations, at the rate at which that detector computes them.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from adapt.cost.units import detector_units, madds
from adapt.data.annotated_image import read_image
from adapt.data.images import Fitting, InputSize
from adapt.detector.retinanet import build_detector
from adapt.errors import AdaptError
from adapt.machine import usable_cores
from adapt.network.backbone import Backbone
from bench.acceptance.meet import MEASUREMENTS as SCALINGS
from bench.acceptance.verify import MEASUREMENTS
from bench.costs import certify
from bench.costs.recipe_table import RecipeTable, recipe_backend
from bench.costs.selection import EVERYTHING
from bench.latency.backend import Backend, open_backend
from bench.latency.subject import WholeDetector
from bench.latency.timing import Protocol
from bench.latency.workers import Measurement, Workers
from bench.networks.measure import DETECTOR_PROTOCOL
from bench.pipeline.choice import Front
from bench.pipeline.run import Costs
from bench.pipeline.target import Target
from search.estimate import RunEstimate, StepEstimate, estimate_run
from search.recipe.budget import Budget
from search.recipe.recipe import Recipe
from search.score.replaced import calibration
from search.score.scoring import networks_to_measure
from search.train.validation import validation_split
from search.train.world import World

ONCE = Protocol(rounds=1, round_ms=1.0, retries=0, warm_up_ms=0.0)
PIXELS = 320 * 320  # of the largest input that is timed
EXPORT_SECONDS = 10.0  # of one ONNX file
TRAINED = 2  # images of the passes that are timed
FINALIST = 4  # networks that are measured for one finalist, about
PASSES = 3  # a backward pass counts as two forward passes, as in the estimate of a training


@dataclass(frozen=True)
class Pace:
    """How fast the source's detector is, in seconds.

    Attributes:
        call: One call.
        build: Until it could be called.
    """

    call: float
    build: float

    @classmethod
    def of(cls, backend: Backend, subject: WholeDetector) -> "Pace":
        """Build and time a detector; of a large input a part, so that no plan takes minutes.

        Raises:
            AdaptError: If the backend cannot measure here.
        """
        backend.check()
        part = replace(subject, size=_part(subject.size))
        start = time.perf_counter()
        with Workers(Measurement(backend, ONCE)) as workers:
            (latency,) = workers.latencies([part], name="the detector", fix="free memory")
        call = latency.min_ms / 1000
        build = max(0.0, time.perf_counter() - start - 6 * call)
        return cls(call * _madds(subject) / _madds(part), build)

    def measured(self, detectors: int, protocol: Protocol) -> float:
        """Return the seconds that so many detectors take to build and measure."""
        each = 2 + protocol.rounds * max(3, protocol.round_ms / 1000 / self.call + 1)
        return detectors * (self.build + each * self.call)


def _part(size: InputSize) -> InputSize:
    while size.height * size.width > PIXELS:
        size = InputSize(size.height // 2, size.width // 2, "shortest-edge").fixed()
    return size


def _madds(subject: WholeDetector) -> float:
    return sum(map(madds, detector_units(subject.network, subject.detector, subject.size)))


@dataclass(frozen=True)
class Plan:
    """The stages of a run, and how long they take.

    Attributes:
        seconds: Of every stage on this machine, or why that is not known.
        training: Steps, memory and operations of search and fine-tuning.
        method: How the seconds were estimated.
    """

    seconds: dict[str, float | str]
    training: RunEstimate
    method: str

    @property
    def total(self) -> float:
        """Seconds of all stages whose time is known."""
        return sum(value for value in self.seconds.values() if not isinstance(value, str))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        training = self.training.to_dict(searches="search" in self.seconds)
        method = f"{self.method}; {training.pop('method')}"
        return {"seconds": self.seconds, "total_seconds": self.total, **training, "method": method}

    def readable(self) -> dict[str, Any]:
        """Return a time per stage, as people read it."""
        rows: dict[str, Any] = {name: duration(value) for name, value in self.seconds.items()}
        content = self.to_dict()
        rows |= {"all of these": duration(self.total), "memory_gb": content["memory_gb"]}
        kinds = [name for name in ("weight", "arch", "finetune") if name in content]
        rows |= {f"{name} steps": _steps(content[name]) for name in kinds}
        return rows | {"method": content["method"]}


def plan_run(
    recipe: Recipe,
    out: Path,
    costs: Costs,
    limit_steps: int | None,
    front: Front | None = None,
    at_once: int = 1,
) -> Plan:
    """Estimate every stage of a run.

    Args:
        recipe: The recipe.
        out: Folder of the run; measured costs in it are not measured again.
        costs: Where the cost table comes from.
        limit_steps: As for the run itself.
        front: Which networks are compared with the source.
        at_once: Fine-tunings side by side, one thread each.

    Raises:
        AdaptError: If the recipe's data cannot be read.
    """
    front = front or Front()
    train = recipe.split(recipe.data.train)
    classes, val = len(train.class_names), validation_split(recipe, train)
    training = estimate_run(recipe, len(train), classes, limit_steps, len(val) if val else 0)
    stages = _Stages(recipe, out / Target(recipe).folder, costs, training, classes, front, at_once)
    seconds: dict[str, float | str] = {}
    for name, estimate in stages.estimates().items():
        try:
            seconds[name] = round(estimate(), 1)
        except AdaptError as error:
            seconds[name] = f"unknown: {error}"
    method = (
        "seconds on this machine without neighbours: the source's detector was timed as each stage "
        "runs it, and its passes at the rate of which training is counted; int8 takes longer if "
        "convolutions must stay in fp32"
    )
    return Plan(seconds, training, method)


class _Stages:
    """Estimates stages; what cannot be timed here raises an AdaptError."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        costs: Costs,
        training: RunEstimate,
        classes: int,
        front: Front,
        at_once: int,
    ) -> None:
        self.front, self.at_once = front, at_once
        self.detectors = len(front.names)
        self.recipe, self.costs, self.training = recipe, costs, training
        self.target, self.device = Target(recipe), recipe.device
        self.table = folder / "costs.sqlite"
        self.benchmark = recipe.split(recipe.data.benchmark)
        self.classes = classes
        config, size = recipe.detector_config(classes), recipe.input.fixed()
        self.subject = WholeDetector(recipe.source, config, size)

    def estimates(self) -> dict[str, Callable[[], float]]:
        """Return what estimates the seconds of every stage, in their order."""
        search, finetune = self.training, self.training.finetune
        stages: dict[str, Callable[[], float]] = {}
        if self.recipe.search.cost == "latency" and not self.costs.table:
            stages |= {"profile": self._profile, "certify": self._certify}
        stages |= self._shared(finetune)
        if self.recipe.search.choice in ("scores", "joint"):
            stages["score"] = self._score
        else:
            stages["search"] = lambda: self._training(search.weight, search.arch)
        if self.recipe.search.choice == "joint":
            stages |= {"finalists": self._finalists, "race": lambda: self._race(finetune)}
        else:
            stages["derive"] = self._derive
        if self.front.scaled:
            stages["scale"] = lambda: len(self.front.budgets) * self._approach(SCALINGS)
        return stages | {
            **self._finetunings(finetune),
            "export": self._export,
            "bench": self._bench,
        }

    @cached_property
    def eager(self) -> Pace:
        """PyTorch, one image, all cores or the GPU: how the gate runs it."""
        return Pace.of(open_backend("torch", threads=usable_cores()), self.subject)

    @cached_property
    def timed(self) -> Pace:
        """The deployed detector as it is timed."""
        return Pace.of(recipe_backend(self.recipe), self.subject)

    @cached_property
    def evaluated(self) -> Pace:
        """The deployed detector as it is evaluated: with all cores."""
        on_all_cores = self.recipe.with_device(threads=usable_cores())
        return Pace.of(recipe_backend(on_all_cores), self.subject)

    @cached_property
    def graph(self) -> Pace:
        """The ONNX file as the gate evaluates it, one image."""
        return Pace.of(open_backend("ort-cpu", threads=usable_cores()), self.subject)

    @cached_property
    def training_flops(self) -> float:
        """Floating point operations per second of a forward and a backward pass."""
        return self._flops()

    def _flops(self) -> float:
        device = World.alone().device
        part = replace(self.subject, size=_part(self.subject.size))
        model = build_detector(Backbone(part.network), part.detector).train().to(device)
        images = torch.rand(TRAINED, 3, part.size.height, part.size.width, device=device)
        seconds = float("inf")
        for _ in range(4):  # the first pass allocates
            start = time.perf_counter()
            heads = model.head(list(model.backbone(images).values()))
            loss = torch.stack([output.square().mean() for output in heads.values()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
            seconds = min(seconds, time.perf_counter() - start)
        return TRAINED * PASSES * 2 * _madds(part) / seconds

    @cached_property
    def reading(self) -> float:
        """Seconds to read and fit an image."""
        start = time.perf_counter()
        Fitting.trained(self.recipe.input)(read_image(self.benchmark.images[0]))
        return time.perf_counter() - start

    def _profile(self) -> float:
        part = replace(EVERYTHING, grid=self.costs.grid)
        plan = RecipeTable(self.recipe, self.classes, self.table).plan(part)
        seconds = plan["estimated_seconds"]
        if isinstance(seconds, str):
            raise AdaptError(seconds.removeprefix("unknown: "))
        return float(seconds)

    def _certify(self) -> float:
        detectors = self.costs.detectors or certify.DETECTORS
        return self.timed.measured(detectors, certify.WHOLE_PROTOCOL)

    def _score(self) -> float:
        networks = networks_to_measure(self.recipe.source, self.recipe.space.load())
        search, held_out = self.recipe.search, len(self.recipe.split(self.recipe.data.val))
        images = calibration(search) + min(search.score_images, held_out)
        return (len(networks) + search.score_networks) * images * self.eager.call

    def _finalists(self) -> float:
        networks = self.recipe.joint.candidates * FINALIST
        return max(1, len(self.front.budgets)) * self._approach(networks)

    def _race(self, finetune: StepEstimate) -> float:
        share = self.recipe.joint.raced_epochs / self.recipe.finetune.epochs
        each = self._training(finetune) if self.at_once == 1 else self._alone_on_one(finetune)
        return max(1, len(self.front.budgets)) * share * each / self.at_once

    def _derive(self) -> float:
        if self.front.budgets:
            return len(self.front.budgets) * self._approach(MEASUREMENTS)
        target = self.recipe.search.target
        if not target or Budget.parse(target).unit != "ms":
            return 0.0
        return self._approach(MEASUREMENTS)

    def _approach(self, measurements: int) -> float:
        """Return the seconds of so many measurements on the way to a latency."""
        return self.timed.measured(measurements, certify.WHOLE_PROTOCOL)

    def _shared(self, finetune: StepEstimate) -> dict[str, Callable[[], float]]:
        """Return what estimates the training that all networks start from, if there is one."""
        settings = self.recipe.finetune
        if not settings.shared_epochs:
            return {}
        share = settings.shared_epochs / settings.epochs
        return {"finetune start": lambda: share * self._training(finetune)}

    def _finetunings(self, finetune: StepEstimate) -> dict[str, Callable[[], float]]:
        """Return what estimates them; a derived network takes about what the source does."""

        def alone() -> float:
            return self._training(finetune) + self._validation()

        def side_by_side() -> float:
            each = self._alone_on_one(finetune) + self._validation()
            return math.ceil(self.detectors / self.at_once) * each

        if self.at_once > 1:
            return {"finetune": side_by_side}
        return {f"finetune {name}": alone for name in self.front.names}

    def _alone_on_one(self, finetune: StepEstimate) -> float:
        """Return the seconds of a fine-tuning on one thread."""
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return finetune.steps * finetune.tflops * 1e12 / self._flops()
        finally:
            torch.set_num_threads(usual)

    def _training(self, *steps: StepEstimate) -> float:
        tflops = sum(step.steps * step.tflops for step in steps)
        return tflops * 1e12 / self.training_flops

    def _validation(self) -> float:
        images = self.training.validation.steps if self.training.validation else 0
        return images * (self.reading + self.eager.call) if images else 0.0

    def _export(self) -> float:
        gate = 0.0
        if self.target.gated:
            images = len(self.recipe.split(self.recipe.data.val))
            gate = images * (2 * self.reading + self.eager.call + self.graph.call)
        build = self.timed.build if self.target.on_engine else 0.0
        return self.detectors * (EXPORT_SECONDS + build + gate)

    def _bench(self) -> float:
        each = self.reading + self.evaluated.call / self.device.batch
        rounds = self.device.rounds * DETECTOR_PROTOCOL.round_ms / 1000
        return self.detectors * (len(self.benchmark) * each + rounds)


def _steps(kind: Mapping[str, Any]) -> str:
    """Return one kind of training step as people read it."""
    text = (
        f"{kind['steps']} of {kind['tflops']:.3g} TFLOP and {kind['memory_gb']:.2g} GB, "
        f"{kind['a100_hours']:.2g} h on an A100"
    )
    validated = kind.get("validation")
    return f"{text}; {validated['steps']} images validated" if validated else text


def duration(seconds: float | str) -> str:
    """Return a duration as people read it, or why it is not known."""
    if isinstance(seconds, str):
        return seconds
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
