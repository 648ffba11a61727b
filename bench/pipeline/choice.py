"""Which networks does a run train? (derived ones, scaled ones beside them, and the source)"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from adapt.architecture import Architecture, mobilenet_v2
from adapt.artifacts import check_header, content_hash, header, read_json, write_json
from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from adapt.progress import Progress
from bench.acceptance.meet import TOLERANCE, BudgetMeter, LatencyBudget
from bench.acceptance.stopwatch import check_conditions
from bench.acceptance.verify import derive_verified
from bench.costs.recipe_table import recipe_backend
from bench.latency.backend import conditions
from bench.pipeline.stages import Stages, Task
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.budget import Budget
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
        rule: By which rule it was found, in words.
        folder: Folder of its files.
    """

    name: str
    family: str
    architecture: Architecture
    rule: str
    folder: Path


def source_network(folder: Path) -> Network:
    """Return the source, whose files lie in ``folder``."""
    return Network(SOURCE, SOURCE, mobilenet_v2(), "left alone", folder)


@dataclass(frozen=True)
class Choice:
    """Chooses networks; whatever has to be measured for it is a stage of the run.

    Attributes:
        front: Which networks.
        recipe: The recipe.
        files: Its search, and the cost table that networks are derived by.
        folder: Where architectures are written.
        stages: The stages of the run; those before it are done.
        session: Told of what cannot be measured here.
    """

    front: Front
    recipe: Recipe
    files: SearchFiles
    folder: Path
    stages: Stages
    session: Session

    def networks(self) -> list[Network]:
        """Return the derived networks, each with the scaled one beside it.

        Raises:
            AdaptError: If no network was measured within a budget.
        """
        if not self.front.budgets:
            return [self._network(DERIVED, DERIVED, self._derive())]
        source_ms = self._source_ms()
        found = []
        for text in self.front.budgets:
            of, budget_ms = short(text), LatencyBudget.parse(text).in_ms(source_ms)
            path = self._derive_within(of, Budget("ms", budget_ms))
            found.append(self._network(f"{DERIVED}-{of}", DERIVED, path))
            if self.front.scaled:
                path = self._scale_to(of, budget_ms)
                found.append(self._network(f"{SCALED}-{of}", SCALED, path))
        return found

    def _network(self, name: str, family: str, path: Path) -> Network:
        rule = read_json(path, "architecture").get("rule", "unknown")
        return Network(name, family, Architecture.load(path), rule, self.folder)

    def _derive(self) -> Path:
        """Derive one network, for the target of the search or by arg max."""
        path, target = self.folder / "arch.json", self.recipe.search.target
        budget = Budget.parse(target) if target else None

        def work(progress: Progress) -> None:
            if budget and budget.unit == "ms" and self._is_measured_here():
                derive_verified(self.files, path, budget, progress=progress)
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

    def _derive_within(self, of: str, budget: Budget) -> Path:
        path = self.folder / f"arch-{of}.json"

        def work(progress: Progress) -> None:
            derive_verified(self.files, path, budget, progress=progress)

        key = content_hash([self._searched_from, budget.amount])
        return self.stages.once(Task(f"derive {of}", key, path, self.folder), work)

    def _scale_to(self, of: str, budget_ms: float) -> Path:
        path = self.folder / f"{SCALED}-{of}.json"

        def work(progress: Progress) -> None:
            with BudgetMeter(self.recipe, self.recipe.num_classes(), progress) as meter:
                met = meter.by_factor("width", self.recipe.detector, budget_ms)
            if abs(off := met.measured_ms / budget_ms - 1) > TOLERANCE:
                self.session.warn(
                    f"the closest scaled source takes {met.measured_ms:.4g} ms, {off:+.1%} of the "
                    f"{budget_ms:.4g} ms to meet"
                )
            rule = f"width of all blocks, {met.how}"
            costs = {"measured_ms": met.measured_ms}
            met.sized.architecture.save(path, rule=rule, costs=costs)

        key = content_hash([self._measured, budget_ms])
        return self.stages.once(Task(f"scale {of}", key, path, self.folder), work)

    def _source_ms(self) -> Callable[[], float]:
        """Return what tells the latency of the source, which is measured once for all budgets."""
        path = self.folder / "source.latency.json"

        def work(progress: Progress) -> None:
            with BudgetMeter(self.recipe, self.recipe.num_classes(), progress) as meter:
                write_json(path, header("source-latency", min_ms=meter.source_ms()))

        def source_ms() -> float:
            key = content_hash(self._measured)
            self.stages.once(Task("measure source", key, path, self.folder), work)
            content = check_header(read_json(path, "latency"), "source-latency", path)
            return float(content["min_ms"])

        return source_ms

    @property
    def _searched_from(self) -> str:
        """Hash of everything that the search or the scores depend on."""
        return self.stages.made_from["score" if self.files.by_scores else "search"]

    @property
    def _measured(self) -> list[object]:
        """What the latency of a network depends on."""
        here = conditions(recipe_backend(self.recipe), self.recipe.input.fixed())
        return [asdict(here), self.recipe.detector.to_dict(), self.recipe.num_classes()]
