"""Which stages does a run have, and what does each read and write?

profile -> search -> derive -> fine-tune -> export -> bench. Every stage reads and writes files. It
is skipped when its file is there and was made from the same inputs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.artifacts import check_header, content_hash, file_hash, make_folder, read_json
from adapt.cost.table import CostTable, predict_latency
from adapt.data.coco import CocoSplit, check_apart, check_has_boxes
from adapt.errors import AdaptError
from adapt.lock import ELSEWHERE, alone
from adapt.network.weights import find_weights
from adapt.progress import Progress, Stage
from bench.costs import certify
from bench.costs.recipe_table import RecipeTable, recipe_backend
from bench.costs.selection import EVERYTHING
from bench.latency.backend import conditions
from bench.networks.artifacts import Artifacts
from bench.networks.measure import DETECTOR_PROTOCOL, BenchResult, Timing, compare
from bench.networks.report import write_report
from bench.pipeline.choice import DERIVED, Choice, Front, Network, source_network
from bench.pipeline.result import RunResult
from bench.pipeline.stages import Stages, Task
from bench.pipeline.target import Target, deployment_path
from bench.pipeline.training import finetune_all, shared_start
from bench.report.page import write_page
from search.derive.decision import decided
from search.derive.finished import SearchFiles
from search.recipe.recipe import Recipe
from search.recipe.search_cost import ranking_warning, search_cost
from search.score.run import run_score
from search.supernet.run import run_search
from search.train.session import Session
from search.train.validation import validation_split


@dataclass(frozen=True)
class Costs:
    """Where the cost table of a run for latency comes from.

    Attributes:
        table: A table that was measured before, perhaps elsewhere; None measures one here.
        uncertified: Whether such a table without a certificate will do.
        grid: As of ``adapt profile --grid``, for a table that is measured here.
        detectors: Whole detectors that such a table is certified by; the usual number if None.
    """

    table: Path | None = None
    uncertified: bool = False
    grid: int = 1
    detectors: int | None = None


class Run:
    """One run of a recipe into a folder.

    Args:
        recipe: The recipe.
        out: Folder of all results.
        session: How the trainings are carried out.
        display: Opens the progress display of a stage.
        costs: Where the cost table comes from.
        front: Which networks are compared with the source; one derived network if None.
        at_once: Fine-tunings side by side, one thread each; 1 takes all threads.

    Raises:
        AdaptError: If an input is wrong, or this machine cannot do what the recipe asks for.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        session: Session,
        display: Stage,
        costs: Costs | None = None,
        front: Front | None = None,
        at_once: int = 1,
    ) -> None:
        self.recipe, self.session, self.costs = recipe, session, costs or Costs()
        self.front, self.at_once = front or Front(), at_once
        self.target = Target(recipe)
        self.train = recipe.split(recipe.data.train)
        self.benchmark = self._known(recipe.data.benchmark)
        self.config = recipe.detector_config(len(self.train.class_names))
        self.size = recipe.input.fixed()
        self.for_latency = recipe.search.cost == "latency"
        self.out, self.deployed_in = out, out / self.target.folder
        self.searched_in = self.deployed_in if self.for_latency else out
        self.check()
        self.stages = Stages(out, display)

    def execute(self) -> RunResult:
        """Run or reuse every stage.

        Raises:
            AdaptError: If the folder holds results of another recipe, or a stage fails.
        """
        with alone(self.out / ".lock", ELSEWHERE):
            return self._execute()

    def _execute(self) -> RunResult:
        costs, source = self._costs(), source_network(self.recipe, self.out)
        if costs:
            self._doubt(costs)
        start = shared_start(self.recipe, source, self.stages, self.session)
        searched = self._score(start) if self.by_scores else self._search(costs)
        files = SearchFiles(searched, costs, self.costs.uncertified, doubtful=True)
        of_run = self.searched_in, self.stages, self.session, start, self.at_once
        choice = Choice(self.front, self.recipe, files, *of_run)
        networks = [*choice.networks(), source]
        detectors = finetune_all(
            networks, self.recipe, start, self.stages, self.session, self.at_once
        )
        artifacts = {name: self._export(name, detector) for name, detector in detectors.items()}
        return self._finish(networks, searched, costs, artifacts)

    def check(self) -> None:
        """Find what would stop the run after hours.

        Raises:
            AdaptError: With the fix.
        """
        make_folder(self.out)
        for split in (self.train, self.benchmark):
            check_has_boxes(split)
            for doubt in split.doubts(self.config.detections):
                self.session.warn(doubt)
        if doubt := self.benchmark.untaught(self.train):
            self.session.warn(doubt)
        if self.recipe.init == "imagenet" and not self.recipe.weights:
            find_weights(self.recipe.space.load().source)
        self.target.check()
        validation_split(self.recipe, self.train)
        if self.by_scores:
            self._check_scores()
        if self.recipe.search.choice == "joint":
            self._check_joint()
        if self.recipe.finetune.teacher_weight and not self.recipe.finetune.shared_epochs:
            raise AdaptError(
                f"finetune.teacher_weight is {self.recipe.finetune.teacher_weight:g}, and the "
                "teacher of a run is the source that all networks start from; set "
                "finetune.shared_epochs"
            )
        if self.target.gated:
            check_has_boxes(self._known(self.recipe.data.val))
        if self.costs.table and not self.for_latency:
            search_cost(self.recipe, self.train, self.costs.table)  # says that it is not used
        if self.for_latency and not self.costs.table:
            self.target.check_measurable()
        if self.front.budgets:
            self._check_front()

    def _check_scores(self) -> None:
        """Check that there will be a detector to score, and a budget to derive for.

        Raises:
            AdaptError: If not.
        """
        if not self.recipe.finetune.shared_epochs:
            raise AdaptError(
                f"search.choice = {self.recipe.search.choice!r} scores the source that all "
                "networks start from; set finetune.shared_epochs"
            )
        held_out = self._known(self.recipe.data.val)
        check_has_boxes(held_out)
        check_apart(self.train, held_out)
        choice, target = self.recipe.search.choice, self.recipe.search.target
        if choice == "scores" and not self.front.budgets and not target:
            raise AdaptError(
                "scores choose the network that loses least within a budget; set search.target, "
                "or pass --budgets"
            )
        data = self.recipe.data
        if data.benchmark == data.val:
            self.session.warn(
                f"networks are chosen on `{data.val}`, which the benchmark reports too: its AP "
                "will be too good; set data.test to another split"
            )

    def _check_joint(self) -> None:
        """Check that finalists can be measured and taught.

        Raises:
            AdaptError: If not, or a candidate is wrong.
        """
        self.recipe.check_joint()
        if not self.for_latency:
            raise AdaptError(
                "search.choice = 'joint' measures detectors of several settings; set search.cost "
                "to 'latency'"
            )
        if why_not := self.target.why_not_here():
            raise AdaptError(
                f"search.choice = 'joint' measures detectors until they meet a latency: {why_not}; "
                "run it where the device is, or set search.choice to 'scores'"
            )

    def _check_front(self) -> None:
        """Check that networks can be measured on the way to a budget.

        Raises:
            AdaptError: If the search is not for latency, or the device is not here.
        """
        if not self.for_latency:
            raise AdaptError(
                f"--budgets are latencies, and recipe {self.recipe.name!r} searches for "
                "multiply-adds; set search.cost to 'latency'"
            )
        if why_not := self.target.why_not_here():
            raise AdaptError(
                f"--budgets measures networks until they meet them: {why_not}; run it where the "
                "device is, or set search.target"
            )

    def _known(self, name: str) -> CocoSplit:
        """Return a split with the labels of the training split."""
        train = self.train
        return self.recipe.split(name).matched(train.class_names, str(train.annotations))

    def _costs(self) -> Path | None:
        if not self.for_latency or self.costs.table:
            return self.costs.table
        path, config = self.deployed_in / "costs.sqlite", self.config
        table = RecipeTable(self.recipe, config.num_classes, path)
        here = conditions(recipe_backend(self.recipe, path), self.size)
        space, part = self.recipe.space.load(), replace(EVERYTHING, grid=self.costs.grid)
        inputs = [space.hash, config.to_dict(), self.size.to_dict(), asdict(here)]
        key = content_hash([*inputs, part.grid] if part.grid > 1 else inputs)

        def profile(progress: Progress) -> None:
            table.profile(part, progress=progress)

        def measure_others(progress: Progress) -> None:
            table.certify(self.costs.detectors or certify.DETECTORS, progress=progress)

        self.stages.once(Task("profile", key, path, self.deployed_in), profile)
        return self.stages.once(Task("certify", key, path, self.deployed_in), measure_others)

    def _doubt(self, costs: Path) -> None:
        """Tell of a table that ranks badly now, before hours are spent by it."""
        with CostTable.open(costs) as table:
            if doubt := ranking_warning(table):
                self.session.warn(doubt)

    @property
    def by_scores(self) -> bool:
        """Whether networks are derived by scores, without a search."""
        return self.recipe.search.choice in ("scores", "joint")

    def _score(self, start: Path | None) -> Path:
        assert start is not None
        recipe, file = self.recipe, self.out / "scores.json"
        images = [recipe.split(name) for name in (recipe.data.train, recipe.data.val)]
        inputs: list[object] = [file_hash(start), *(split.sha256 for split in images)]
        inputs += [recipe.space.load().hash, recipe.input.to_dict(), *recipe.search.scoring]
        key = content_hash(inputs)

        def work(progress: Progress) -> None:
            run_score(recipe, start, file, progress=progress)

        return self.stages.once(Task("score", key, file, self.out), work)

    def _search(self, costs: Path | None) -> Path:
        recipe, folder = self.recipe, self.searched_in / "search"
        cost = search_cost(recipe, self.train, costs, uncertified=self.costs.uncertified)
        key = content_hash([recipe.search_hash, cost.provenance, self.session.limit_steps])

        def work(progress: Progress) -> None:
            session = replace(self.session, progress=progress, provenance=cost.provenance)
            run_search(recipe, self.train, cost.model, folder, session)

        file = folder / "supernet.pt"
        return self.stages.once(Task("search", key, file, self.searched_in), work)

    def _export(self, name: str, detector: Path) -> Path:
        folder = self.deployed_in
        artifact = self.target.artifact(name, detector, folder)
        if artifact == detector:
            return detector
        key = content_hash(self.target.identity(detector, self.train))
        measured = self.costs.table or folder / "costs.sqlite"

        def work(progress: Progress) -> None:
            timing_cache = measured.with_suffix(".timing-cache")
            self.target.deploy(detector, artifact, self.train, timing_cache, progress)

        return self.stages.once(Task(f"export {name}", key, artifact, folder, replace=True), work)

    def _bench(self, files: dict[str, Path]) -> BenchResult:
        device = self.recipe.device
        protocol = replace(DETECTOR_PROTOCOL, rounds=device.rounds)
        timing = Timing(device.threads, device.batch, protocol)
        artifacts: Artifacts = {name: (device.runtime, file) for name, file in files.items()}

        def work(progress: Progress) -> BenchResult:
            report = self.deployed_in / "report"
            return compare(artifacts, self.benchmark, timing, report=report, progress=progress)

        return self.stages.always("bench", work)

    def _finish(
        self,
        networks: Sequence[Network],
        searched: Path,
        costs: Path | None,
        files: dict[str, Path],
    ) -> RunResult:
        """Benchmark the deployed files, if this machine can, and write the report."""
        why_not = self.target.why_not_here()
        bench = None if why_not else self._bench(files)
        report = self.deployed_in / "report"
        result = RunResult(
            bench=bench,
            networks=networks,
            decided=decided(searched),
            predicted_ms=self._predicted_ms(networks, costs) if costs else {},
            files=files,
            deployed=_deployments(files),
            report=report / "report.md" if bench else None,
            not_measured=self._elsewhere(why_not, files) if why_not else "",
            stages=self.stages.outcomes,
        )
        if bench:
            told = result.findings(), result.families(), result.details()
            write_report(report, bench, *told)
            self.stages.aside("report", lambda progress: write_page(report, progress))
        return result

    def _elsewhere(self, why_not: str, files: dict[str, Path]) -> str:
        data, device = self.recipe.data, self.recipe.device
        command = f"adapt bench {' '.join(str(file) for file in files.values())} --data {data.root}"
        return (
            f"AP and latency on {device.runtime} ({why_not}); copy {self.deployed_in} to a machine "
            f"that can, and run there `{command} --split {data.benchmark}`"
        )

    def _predicted_ms(self, networks: Sequence[Network], costs: Path) -> dict[str, float]:
        """Return the latency of every network by the table, as its certificate corrects it."""
        with CostTable.open(costs) as table:
            rows_ms = {
                network.name: predict_latency(table, network.architecture, self.config, self.size)
                for network in networks
                if network.family == DERIVED and network.setting == self.recipe.setting
            }
            if not table.certificate:
                return rows_ms
            return {name: table.corrected(latency_ms) for name, latency_ms in rows_ms.items()}


def _deployments(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return what is known of deployed files; nothing of a detector file of PyTorch."""
    described = {}
    for name, file in files.items():
        path = deployment_path(file)
        if path.is_file():
            described[name] = check_header(read_json(path, "deployment"), "deployment", path)
    return described
