"""Which stages turn a recipe into a benchmarked detector?

profile -> search -> derive -> fine-tune -> export -> bench; every stage reads and writes files, and
is skipped when its files are there and were made from the same inputs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture, mobilenet_v2
from adapt.artifacts import (
    check_header,
    content_hash,
    file_hash,
    header,
    make_folder,
    read_json,
    write_json,
)
from adapt.cost.table import CostTable, predict_latency
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.network.weights import find_weights
from adapt.progress import Progress, Stage, ignore, silent_stage
from adapt.runtime import usual_tail
from bench.costs.recipe_table import certify_recipe, profile_recipe, recipe_backend
from bench.latency.backend import conditions
from bench.latency.timing import Protocol
from bench.networks.measure import DETECTOR_PROTOCOL, BenchResult, compare
from bench.networks.report import write_report
from export.graph.detector import export_detector
from export.graph.options import GraphOptions
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.budget import Budget
from search.recipe.costs import search_cost
from search.recipe.recipe import Recipe
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        bench: Derived and source detector, measured in one run.
        derived: The derived backbone.
        predicted_ms: Latency of the derived detector by the cost table; None without a table.
        report: The report's Markdown file.
        stages: What happened to each stage: ``ran`` or ``reused``.
    """

    bench: BenchResult
    derived: Architecture
    predicted_ms: float | None
    report: Path
    stages: dict[str, str]

    def summary(self) -> list[str]:
        """Return the derived network and where the report is, as lines of text."""
        lines = [f"derived: {self.derived}"]
        if self.predicted_ms is not None:
            (measured,) = (e.latency.p50_ms for e in self.bench.entries if e.name == "derived")
            lines.append(
                f"latency of the derived detector: {self.predicted_ms:.2f} ms predicted by the "
                f"cost table, {measured:.2f} ms measured"
            )
        return [*lines, f"report: {self.report}"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "bench": self.bench.to_dict(),
            "derived": self.derived.to_dict(),
            "predicted_ms": self.predicted_ms,
            "report": str(self.report),
            "stages": self.stages,
        }


class Run:
    """One run of a recipe into a folder.

    Args:
        recipe: The recipe.
        out: Folder of all results.
        stage: Opens the progress display of a stage.
        limit_steps: Shorten every training phase to this many steps.
        warn: Told of everything that looks like a collapse of the search.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        stage: Stage = silent_stage,
        limit_steps: int | None = None,
        warn: Callable[[str], object] = ignore,
    ) -> None:
        self.recipe, self.out, self.stage, self.limit_steps = recipe, out, stage, limit_steps
        self.warn = warn
        self.train = recipe.split(recipe.data.train)
        self.test = recipe.split(recipe.data.benchmark)
        self.config = recipe.detector_config(len(self.train.class_names))
        self.size = recipe.input.fixed()
        self._check()
        self.keys = self._read_keys()
        self.stages: dict[str, str] = {}

    def execute(self) -> RunResult:
        """Run or reuse every stage.

        Raises:
            AdaptError: If an input is wrong, or the folder holds results of another recipe.
        """
        searched = self._search()
        architecture = self._derive(searched)
        artifacts = {}
        for name, backbone in (("derived", architecture), ("source", mobilenet_v2())):
            detector = self._finetune(name, backbone)
            artifacts[name] = ("ort-cpu", self._export(name, detector))
        result = self._bench(artifacts)
        report = self.out / "report"
        write_report(report, result)
        predicted = self._predicted(architecture)
        return RunResult(result, architecture, predicted, report / "report.md", self.stages)

    def _check(self) -> None:
        """Find now what would stop the run after hours."""
        device = self.recipe.device
        if (device.runtime, device.precision, device.batch) != ("ort-cpu", "fp32", 1):
            raise AdaptError(
                f"`adapt run` deploys to ort-cpu fp32 batch 1, recipe {self.recipe.name!r} asks "
                f"for {device.runtime} {device.precision} batch {device.batch}; run profile, "
                "search, derive, finetune and export one by one"
            )
        make_folder(self.out)
        if self.train.class_names != self.test.class_names:
            raise AdaptError(
                f"{self.test.annotations} has other classes than {self.train.annotations}; "
                "evaluate on the same ones"
            )
        if not any((~boxes.crowd).any() for boxes in self.test.boxes):
            raise AdaptError(f"{self.test.annotations} has no box to evaluate on; annotate some")
        if self.recipe.init == "imagenet" and not self.recipe.weights:
            find_weights(self.recipe.space.load().source)

    def _profile(self) -> Path:
        path, recipe = self.out / "costs.sqlite", self.recipe
        space, classes = recipe.space.load(), self.config.num_classes
        found = conditions(recipe_backend(recipe, path), self.size)
        key = content_hash([space.hash, self.config.to_dict(), self.size.to_dict(), asdict(found)])
        self._once(
            "profile", key, [path], lambda p: profile_recipe(recipe, classes, path, progress=p)
        )
        self._once(
            "certify", key, [path], lambda p: certify_recipe(recipe, classes, path, progress=p)
        )
        return path

    def _search(self) -> Path:
        recipe, folder = self.recipe, self.out / "search"
        costs = self._profile() if recipe.search.cost == "latency" else None
        cost = search_cost(recipe, self.train, costs)
        path = folder / "supernet.pt"

        def work(progress: Progress) -> None:
            session = self._session(progress, cost.provenance)
            run_search(recipe, self.train, cost.model, folder, session)

        self._once(
            "search",
            content_hash([recipe.search_hash, cost.provenance, self.limit_steps]),
            [path],
            work,
        )
        return path

    def _session(self, progress: Progress, provenance: dict[str, Any]) -> Session:
        return Session(
            progress=progress,
            warn=self.warn,
            limit_steps=self.limit_steps,
            provenance=provenance,
        )

    def _derive(self, searched: Path) -> Architecture:
        path = self.out / "arch.json"
        key = content_hash(self.keys["search"])
        wanted = self.recipe.search
        budget = Budget.parse(wanted.target) if wanted.target else None
        costs = self.out / "costs.sqlite" if wanted.cost == "latency" else None
        files = SearchFiles(searched, costs)
        self._once("derive", key, [path], lambda _: derive(files, path, budget))
        return Architecture.load(path)

    def _finetune(self, name: str, architecture: Architecture) -> Path:
        path = self.out / f"{name}.safetensors"
        data = file_hash(self.train.annotations)
        self._once(
            f"finetune {name}",
            content_hash([self.recipe.finetune_hash, architecture.hash, data, self.limit_steps]),
            [path],
            lambda p: run_finetune(
                self.recipe,
                architecture,
                self.train,
                path,
                self._session(p, {"annotations_sha256": data}),
            ),
        )
        return path

    def _export(self, name: str, detector: Path) -> Path:
        path = detector.with_suffix(".onnx")
        parent = file_hash(detector)

        def work(_: Progress) -> None:
            model, info = load_detector(detector)
            options = GraphOptions(tail=usual_tail("ort-cpu"))
            export_detector(model, info, path, options, provenance={"detector_sha256": parent})

        self._once(f"export {name}", parent, [path], work)
        return path

    def _bench(self, artifacts: dict[str, tuple[str, Path]]) -> BenchResult:
        device = self.recipe.device
        protocol = Protocol(rounds=device.rounds, round_ms=DETECTOR_PROTOCOL.round_ms)
        with self.stage("bench") as progress:
            result = compare(
                artifacts, self.test, threads=device.threads, protocol=protocol, progress=progress
            )
        self.stages["bench"] = "ran"
        return result

    def _predicted(self, architecture: Architecture) -> float | None:
        if self.recipe.search.cost != "latency":
            return None
        with CostTable.open(self.out / "costs.sqlite") as table:
            return predict_latency(table, architecture, self.config, self.size)

    def _read_keys(self) -> dict[str, str]:
        path = self.out / "run.json"
        if not path.exists():
            return {}
        return dict(check_header(read_json(path, "run"), "run", path)["stages"])

    def _once(
        self, name: str, key: str, outputs: list[Path], work: Callable[[Progress], object]
    ) -> None:
        """Do the work of a stage unless its outputs exist and were made from the same inputs."""
        if self.keys.get(name) == key and all(path.is_file() for path in outputs):
            self.stages[name] = "reused"
            return
        if name in self.keys and self.keys[name] != key:
            raise AdaptError(
                f"{self.out} holds the stage '{name}' of another recipe, data set or cost table; "
                "choose another folder with --out, or delete it"
            )
        with self.stage(name) as progress:
            work(progress)
        self.keys[name] = key
        self.stages[name] = "ran"
        write_json(self.out / "run.json", header("run", stages=self.keys))
