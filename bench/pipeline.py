"""How does a recipe become a benchmarked detector? (`adapt run`: all stages, one after the other)

profile -> search -> derive -> fine-tune -> export -> bench. Every stage reads and writes files. It
is skipped when its file is there and was made from the same inputs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

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
from adapt.progress import Progress, Stage
from adapt.runtime import usual_tail
from bench.costs.recipe_table import RecipeTable, recipe_backend
from bench.latency.backend import conditions
from bench.networks.measure import DETECTOR_PROTOCOL, Artifacts, BenchResult, Timing, compare
from bench.networks.report import write_report
from export.graph.detector import export_detector
from export.graph.options import GraphOptions
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.budget import Budget
from search.recipe.recipe import Recipe
from search.recipe.search_cost import search_cost
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

Output = TypeVar("Output")


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        bench: Derived and source detector, measured in one run.
        derived: Architecture of the derived backbone.
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


class Stages:
    """Does the work of every stage once.

    ``run.json`` records from which inputs the file of a stage was made.

    Args:
        folder: Folder of all results.
        display: Opens the progress display of a stage.

    Attributes:
        keys: Hash of a finished stage's inputs, by its name.
        outcomes: ``ran`` or ``reused`` for every stage so far.
    """

    def __init__(self, folder: Path, display: Stage) -> None:
        self._record, self._display = folder / "run.json", display
        self.keys: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        if self._record.exists():
            content = check_header(read_json(self._record, "run"), "run", self._record)
            self.keys.update(content["stages"])

    def always(self, name: str, work: Callable[[Progress], Output]) -> Output:
        """Do the work of a stage, and return what it returns."""
        with self._display(name) as progress:
            output = work(progress)
        self.outcomes[name] = "ran"
        return output

    def once(self, name: str, key: str, file: Path, work: Callable[[Progress], object]) -> Path:
        """Do the work of a stage unless its file was made from the same inputs; return the file.

        Args:
            name: Name of the stage.
            key: Hash of its inputs.
            file: What it writes.
            work: Writes the file.

        Raises:
            AdaptError: If the folder holds this stage of other inputs.
        """
        if self.keys.get(name) == key and file.is_file():
            self.outcomes[name] = "reused"
            return file
        if name in self.keys and self.keys[name] != key:
            raise AdaptError(
                f"{self._record.parent} holds the stage '{name}' of another recipe, data set or "
                "cost table; choose another folder with --out, or delete it"
            )
        self.always(name, work)
        self.keys[name] = key
        write_json(self._record, header("run", stages=self.keys))
        return file


class Run:
    """One run of a recipe into a folder.

    Args:
        recipe: The recipe.
        out: Folder of all results.
        session: How the trainings are carried out.
        display: Opens the progress display of a stage.

    Raises:
        AdaptError: If an input is wrong.
    """

    def __init__(self, recipe: Recipe, out: Path, session: Session, display: Stage) -> None:
        self.recipe, self.out, self.session = recipe, out, session
        self.train = recipe.split(recipe.data.train)
        self.benchmark = recipe.split(recipe.data.benchmark)
        self.config = recipe.detector_config(len(self.train.class_names))
        self.size = recipe.input.fixed()
        self._check()
        self.stages = Stages(out, display)

    def execute(self) -> RunResult:
        """Run or reuse every stage.

        Raises:
            AdaptError: If the folder holds results of another recipe, or a stage fails.
        """
        costs = self._profile() if self.recipe.search.cost == "latency" else None
        searched = self._search(costs)
        architecture = self._derive(searched, costs)
        artifacts = {}
        for name, backbone in (("derived", architecture), ("source", mobilenet_v2())):
            detector = self._finetune(name, backbone)
            artifacts[name] = ("ort-cpu", self._export(name, detector))
        result = self._bench(artifacts)
        report = self.out / "report"
        write_report(report, result)
        predicted_ms = self._predicted_ms(architecture, costs) if costs else None
        outcomes = self.stages.outcomes
        return RunResult(result, architecture, predicted_ms, report / "report.md", outcomes)

    def _check(self) -> None:
        """Find what would stop the run after hours."""
        device = self.recipe.device
        if (device.runtime, device.precision, device.batch) != ("ort-cpu", "fp32", 1):
            raise AdaptError(
                f"`adapt run` deploys to ort-cpu fp32 batch 1, recipe {self.recipe.name!r} asks "
                f"for {device.runtime} {device.precision} batch {device.batch}; run profile, "
                "search, derive, finetune and export one by one"
            )
        make_folder(self.out)
        evaluated = self.benchmark.annotations
        if self.train.class_names != self.benchmark.class_names:
            raise AdaptError(
                f"{evaluated} has other classes than {self.train.annotations}; evaluate on the "
                "same ones"
            )
        if not any((~boxes.crowd).any() for boxes in self.benchmark.boxes):
            raise AdaptError(f"{evaluated} has no box to evaluate on; annotate some")
        if self.recipe.init == "imagenet" and not self.recipe.weights:
            find_weights(self.recipe.space.load().source)

    def _profile(self) -> Path:
        path, config = self.out / "costs.sqlite", self.config
        table = RecipeTable(self.recipe, config.num_classes, path)
        space = self.recipe.space.load()
        here = conditions(recipe_backend(self.recipe, path), self.size)
        key = content_hash([space.hash, config.to_dict(), self.size.to_dict(), asdict(here)])
        self.stages.once("profile", key, path, lambda progress: table.profile(progress=progress))
        self.stages.once("certify", key, path, lambda progress: table.certify(progress=progress))
        return path

    def _search(self, costs: Path | None) -> Path:
        recipe, folder = self.recipe, self.out / "search"
        cost = search_cost(recipe, self.train, costs)
        key = content_hash([recipe.search_hash, cost.provenance, self.session.limit_steps])

        def work(progress: Progress) -> None:
            session = replace(self.session, progress=progress, provenance=cost.provenance)
            run_search(recipe, self.train, cost.model, folder, session)

        return self.stages.once("search", key, folder / "supernet.pt", work)

    def _derive(self, searched: Path, costs: Path | None) -> Architecture:
        path, target = self.out / "arch.json", self.recipe.search.target
        files, budget = SearchFiles(searched, costs), Budget.parse(target) if target else None
        key = content_hash(self.stages.keys["search"])
        self.stages.once("derive", key, path, lambda _: derive(files, path, budget))
        return Architecture.load(path)

    def _finetune(self, name: str, architecture: Architecture) -> Path:
        recipe, path = self.recipe, self.out / f"{name}.safetensors"
        data, limit = file_hash(self.train.annotations), self.session.limit_steps
        key = content_hash([recipe.finetune_hash, architecture.hash, data, limit])

        def work(progress: Progress) -> None:
            provenance = {"annotations_sha256": data}
            session = replace(self.session, progress=progress, provenance=provenance)
            run_finetune(recipe, architecture, self.train, path, session)

        return self.stages.once(f"finetune {name}", key, path, work)

    def _export(self, name: str, detector: Path) -> Path:
        path, parent = detector.with_suffix(".onnx"), file_hash(detector)

        def work(_: Progress) -> None:
            model, info = load_detector(detector)
            options = GraphOptions(tail=usual_tail("ort-cpu"))
            export_detector(model, info, path, options, provenance={"detector_sha256": parent})

        return self.stages.once(f"export {name}", parent, path, work)

    def _bench(self, artifacts: Artifacts) -> BenchResult:
        device = self.recipe.device
        protocol = replace(DETECTOR_PROTOCOL, rounds=device.rounds)
        timing = Timing(device.threads, device.batch, protocol)

        def work(progress: Progress) -> BenchResult:
            return compare(artifacts, self.benchmark, timing, progress=progress)

        return self.stages.always("bench", work)

    def _predicted_ms(self, architecture: Architecture, costs: Path) -> float:
        with CostTable.open(costs) as table:
            return predict_latency(table, architecture, self.config, self.size)
