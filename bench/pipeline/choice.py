"""Which networks does a run train? (derived ones, scaled ones beside them, and the source)"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from adapt.architecture import Architecture
from adapt.artifacts import (
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from adapt.progress import Progress
from bench.acceptance.meet import TOLERANCE, BudgetMeter, LatencyBudget, Met
from bench.acceptance.stopwatch import check_conditions
from bench.acceptance.verify import derive_verified
from bench.costs.recipe_table import recipe_backend
from bench.latency.backend import conditions
from bench.pipeline.joint import JointChoice, told_race
from bench.pipeline.stages import Stages, Task
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.budget import Budget
from search.recipe.joint import Setting, setting_of
from search.recipe.recipe import Recipe
from search.train.session import Session

DERIVED, SCALED, SOURCE = "derived", "scaled", "source"


@dataclass(frozen=True)
class Front:
    """Which networks a run compares with the source.

    Attributes:
        budgets: Latencies to derive a network for each, such as ``75%`` of the source's, or
            ``12ms``; none derives one network, for ``search.target`` or by arg max.
        scaled: Whether the source is also scaled in width to each of them.

    Raises:
        AdaptError: If a budget has another form or is given twice, or there is none to scale to.
    """

    budgets: tuple[str, ...] = ()
    scaled: bool = False

    def __post_init__(self) -> None:
        parsed = {LatencyBudget.parse(text, "--budgets") for text in self.budgets}
        if len(parsed) < len(self.budgets):
            raise AdaptError(f"--budgets must differ, got {','.join(self.budgets)}")
        if self.scaled and not self.budgets:
            raise AdaptError("--scaled needs latencies to scale to; pass --budgets too")

    @property
    def names(self) -> list[str]:
        """Names of all networks of the run, the source last."""
        if not self.budgets:
            return [DERIVED, SOURCE]
        families = [DERIVED, SCALED] if self.scaled else [DERIVED]
        named = [f"{family}-{short(text)}" for text in self.budgets for family in families]
        return [*named, SOURCE]


def short(budget: str) -> str:
    """Return a budget as part of a name: ``75`` for a share, ``9.5ms`` for a latency."""
    return budget.removesuffix("%")


@dataclass(frozen=True)
class Network:
    """A network of a run.

    Attributes:
        name: Name of its files, such as ``derived-75``.
        family: ``derived``, ``scaled`` or ``source``.
        architecture: Its backbone.
        setting: Pyramid, heads and input around it.
        folder: Folder of its files.
        content: What its architecture file holds: by which rule it was found, and why.
    """

    name: str
    family: str
    architecture: Architecture
    setting: Setting
    folder: Path
    content: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """Its architecture file, which the source has none of."""
        return self.folder / f"{self.name}.json"

    @property
    def rule(self) -> str:
        """By which rule it was found, in words."""
        return str(self.content.get("rule", "unknown"))

    @property
    def race(self) -> tuple[str, ...]:
        """How each finalist did that it raced with, in words; empty without a race."""
        return told_race(self.content)


def source_network(recipe: Recipe, folder: Path) -> Network:
    """Return the source, whose files lie in ``folder``, in the recipe's setting."""
    return Network(SOURCE, SOURCE, recipe.source, recipe.setting, folder, {"rule": "left alone"})


@dataclass(frozen=True)
class Choice:
    """Chooses networks; whatever has to be measured for it is a stage of the run.

    Attributes:
        front: Which networks.
        recipe: The recipe.
        files: Its search, and the cost table that networks are derived by.
        folder: Where architectures are written.
        stages: The stages of the run; those before it are done.
        session: How trainings are carried out; told of what cannot be measured here.
        start: Trained detector that all networks start from; the pretrained source if None.
        at_once: Trainings side by side, one thread each; 1 trains one after another, with all.
    """

    front: Front
    recipe: Recipe
    files: SearchFiles
    folder: Path
    stages: Stages
    session: Session
    start: Path | None = None
    at_once: int = 1

    def networks(self) -> list[Network]:
        """Return the derived networks, each with the scaled one beside it.

        Raises:
            AdaptError: If no network was measured within a budget.
        """
        if not self.front.budgets:
            path = self._choose_jointly() if self.jointly else self._derive()
            return [self._network(DERIVED, DERIVED, path)]
        source_ms = self._source_ms()
        budgets_ms = {
            short(text): LatencyBudget.parse(text).in_ms(source_ms) for text in self.front.budgets
        }
        derived = self._joint.paths if self.jointly else self._derive_within
        families = {DERIVED: derived(budgets_ms)}
        if self.front.scaled:
            families[SCALED] = self._scale_to(budgets_ms, source_ms)
        return [
            self._network(f"{family}-{of}", family, paths[of])
            for of in budgets_ms
            for family, paths in families.items()
        ]

    def _network(self, name: str, family: str, path: Path) -> Network:
        content = read_json(path, "architecture")
        architecture, setting = Architecture.load(path), setting_of(path, self.recipe.setting)
        return Network(name, family, architecture, setting, self.folder, content)

    @property
    def jointly(self) -> bool:
        """Whether pyramid, heads and input are chosen too."""
        return self.recipe.search.choice == "joint"

    @property
    def _joint(self) -> JointChoice:
        of_run = self.folder, self.stages, self.session, self.start
        return JointChoice(self.recipe, self.files, *of_run, self._source_ms(), self.at_once)

    def _choose_jointly(self) -> Path:
        """Choose a detector for the target of the search, or for the latency of the source."""
        target = self.recipe.search.parsed_target()
        return self._joint.paths({"": target.amount if target else self._source_ms()})[""]

    def _derive(self) -> Path:
        """Derive one network, for the target of the search or by arg max."""
        path, target = self.folder / "arch.json", self.recipe.search.target
        budget = Budget.parse(target) if target else None

        def work(progress: Progress) -> None:
            if budget and budget.unit == "ms" and self._is_measured_here():
                derive_verified(self.files, {path: budget}, progress=progress)
            else:
                derive(self.files, path, budget)

        key = content_hash(self._searched_from)
        return self.stages.once(Task("derive", key, path, self.folder), work)

    def _is_measured_here(self) -> bool:
        """Whether this machine measures under the conditions of the table; tell it if not."""
        if self.files.costs is None:
            return False
        try:
            with CostTable.open(self.files.costs) as table:
                backend = recipe_backend(self.recipe, self.files.costs)
                check_conditions(table, backend, self.recipe.input.fixed())
        except AdaptError as error:
            self.session.warn(f"the latency of the derived network is not measured: {error}")
            return False
        return True

    def _derive_within(self, budgets_ms: Mapping[str, float]) -> dict[str, Path]:
        budgets = {
            self._task("derive", of, [self._searched_from, ms], f"arch-{of}"): Budget("ms", ms)
            for of, ms in budgets_ms.items()
        }

        def work(left: Sequence[Task], progress: Progress) -> None:
            files = {task.file: budgets[task] for task in left}
            derive_verified(self.files, files, progress=progress)

        return self._together("derive", list(budgets), budgets_ms, work)

    def _scale_to(self, budgets_ms: Mapping[str, float], source_ms: float) -> dict[str, Path]:
        targets = {
            self._task("scale", of, [self._measured, ms], f"{SCALED}-{of}"): ms
            for of, ms in budgets_ms.items()
        }

        def work(left: Sequence[Task], progress: Progress) -> None:
            # As the derived networks are measured: joint ones at the speed that the source was.
            with self._meter(progress, source_ms if self.jointly else None) as meter:
                for task in left:
                    met = meter.by_factor("width", self.recipe.setting, targets[task])
                    self._check_met(met, targets[task])
                    rule = f"width of all blocks, {met.how}"
                    costs = {"measured_ms": met.measured_ms}
                    met.sized.architecture.save(task.file, rule=rule, costs=costs)

        return self._together("scale", list(targets), budgets_ms, work)

    def _task(self, stage: str, of: str, inputs: list[object], file: str) -> Task:
        path = self.folder / f"{file}.json"
        return Task(f"{stage} {of}", content_hash(inputs), path, self.folder)

    def _together(
        self,
        title: str,
        tasks: Sequence[Task],
        budgets_ms: Mapping[str, float],
        work: Callable[[Sequence[Task], Progress], None],
    ) -> dict[str, Path]:
        """Return the file of every budget."""
        return dict(zip(budgets_ms, self.stages.together(title, tasks, work), strict=True))

    def _check_met(self, met: Met, budget_ms: float) -> None:
        if abs(off := met.measured_ms / budget_ms - 1) > TOLERANCE:
            self.session.warn(
                f"the closest scaled source takes {met.measured_ms:.4g} ms, {off:+.1%} of the "
                f"{budget_ms:.4g} ms to meet"
            )

    def _source_ms(self) -> float:
        """Return the latency of the source, which is measured once for all budgets."""
        path = self.folder / "source.latency.json"

        def work(progress: Progress) -> None:
            with self._meter(progress) as meter:
                write_json(path, header("source-latency", min_ms=meter.source_ms()))

        task = Task("measure source", content_hash(self._measured), path, self.folder)
        measured = self.stages.once(task, work)
        content = check_header(read_json(measured, "latency"), "source-latency", measured)
        with parsing("latency", measured, "delete it, so that it is measured again"):
            return typed(PositiveFloat, content["min_ms"])

    def _meter(self, progress: Progress, source_ms: float | None = None) -> BudgetMeter:
        return BudgetMeter(self.recipe, self.recipe.num_classes(), progress, source_ms)

    @property
    def _searched_from(self) -> str:
        """Hash of everything that the search or the scores depend on."""
        if not self.files.by_scores:
            return self.stages.made_from["search"]
        return content_hash([self.stages.made_from["score"], self.files.costs_identity])

    @property
    def _measured(self) -> list[object]:
        """What the latency of a network depends on."""
        here = conditions(recipe_backend(self.recipe), self.recipe.input.fixed())
        return [asdict(here), self.recipe.detector.to_dict(), self.recipe.num_classes()]
