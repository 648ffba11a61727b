"""Which network does each arm get with each seed?

Measurements come before and after the trainings that choosing takes, never beside them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveFloat

from adapt.artifacts import (
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.cost.expectation import CostModel
from adapt.cost.table import CostTable
from adapt.network.published import NETWORKS
from adapt.space import SearchSpace
from bench.acceptance.meet import TOLERANCE, BudgetMeter, Met
from bench.acceptance.scaling import Sized, scaled
from bench.costs import certify
from bench.costs.recipe_table import RecipeTable
from bench.joint.finalists import drawn_jointly, finalists, load_finalists, save_finalists
from bench.joint.race import Race, Racer, run_racer, run_races
from bench.study.chosen import Chosen, Networks
from bench.study.execution import Execution
from bench.study.preparation import (
    CANDIDATES,
    Preparation,
    candidate_epochs,
    candidate_trial,
    prepare,
)
from bench.study.spec import CHOSEN_ANEW, JOINT, RACED, SCORED, SEARCHED, Arm, Study, file_name
from bench.study.trial import Trial, run_trial
from search.derive.exact import Deriver
from search.derive.finished import SearchFiles
from search.derive.scores import Scores
from search.recipe.recipe import Recipe
from search.recipe.search_cost import check_certificate, latency_cost
from search.train.pool import run_jobs

# Networks per seed.
DRAWN = {"random": 1, "random-joint": 1, **dict.fromkeys(RACED, CANDIDATES)}


@dataclass(frozen=True)
class Chooser:
    """Chooses the networks of all arms and seeds.

    Attributes:
        study: Arms and budget.
        base: The recipe that all arms share.
        out: Folder of the results.
        how: How the study is carried out.
        seeds: The seeds.
        trial: Returns the training of a network by an arm with a seed.
        divided: Returns the recipe of an arm, with the images of a seed.
    """

    study: Study
    base: Recipe
    out: Path
    how: Execution
    seeds: Sequence[int]
    trial: Callable[[Arm, int, Chosen], Trial]
    divided: Callable[[Arm, int], Recipe]

    def all(self) -> Networks:
        """Return the network of every arm and seed.

        Raises:
            AdaptError: If none meets the budget, or a training fails.
        """
        places = [(arm, seed) for arm in self.study.arms for seed in self.seeds]
        sized = [(arm, seed) for arm, seed in places if arm.meets_budget]
        networks = Networks()
        for arm, seed in places:
            if not arm.meets_budget:
                networks[arm.label, seed] = self._given(arm, seed)
        if not sized:
            return networks
        self._measure_costs()
        with self._meter("networks without training") as meter:
            first = {place: self._before(*place, meter) for place in sized}
        self._prepare([self._job(arm, seed) for arm, seed in sized if arm.network in SEARCHED])
        self._race(first)
        self._race_jointly([place for place in sized if place[0].network == "joint"])
        with self._meter("networks of searches") as meter:
            for (arm, seed), drawn in first.items():
                network = self._after(arm, seed, drawn, meter)
                budget_ms = self._budget_ms(meter)
                networks[arm.label, seed] = replace(network, budget_ms=budget_ms)
                self._check_met(arm, seed, networks[arm.label, seed])
        return networks

    def _given(self, arm: Arm, seed: int) -> Chosen:
        """Return the network of an arm that does not have to meet the budget."""
        recipe = self.divided(arm, seed)
        if arm.network == "published":
            network = Sized(NETWORKS[arm.architecture], recipe.setting)
            return Chosen(network, how=arm.architecture)
        how = f"{arm.network} {arm.factor:g}" if arm.factor else arm.network
        return Chosen(scaled(recipe.source, arm.network, arm.factor, recipe.setting), how=how)

    @contextmanager
    def _meter(self, title: str) -> Iterator[BudgetMeter]:
        with (
            self.how.display(title) as progress,
            BudgetMeter(self.base, self.base.num_classes(), progress, self._source_ms) as meter,
        ):
            yield meter

    @property
    def _costs(self) -> Path:
        """The cost table, given or of this study."""
        return self.how.costs or self.out / "costs.sqlite"

    @property
    def _costs_identity(self) -> list[object]:
        """What derived networks depend on of the cost table."""
        with CostTable.open(self._costs) as table:
            return [table.hash, table.correction]

    def _measure_costs(self) -> None:
        """Measure and certify the cost table, as far as an arm needs one and none is given."""
        needed = any(arm.network in CHOSEN_ANEW for arm in self.study.arms)
        if self.how.costs or not needed:
            return
        table = RecipeTable(self.base, self.base.num_classes(), self._costs)
        with self.how.display("profile") as progress:
            table.profile(progress=progress)
        if not _certified(self._costs):
            with self.how.display("certify") as progress:
                table.certify(certify.DETECTORS, progress=progress)

    def _before(self, arm: Arm, seed: int, meter: BudgetMeter) -> list[Chosen]:
        """Return the networks that can be chosen before anything is trained."""
        match arm.network:
            case "softmax" | "scores" | "joint":
                return []
            case rule if rule in DRAWN:
                numbers = range(arm.draw, arm.draw + DRAWN[arm.network])
                return [self._drawn(arm, seed, number, meter) for number in numbers]
            case _:
                return [self._scaled(arm, seed, meter)]

    def _scaled(self, arm: Arm, seed: int, meter: BudgetMeter) -> Chosen:
        setting = self.divided(arm, seed).setting

        def find() -> Chosen:
            met = meter.by_factor(arm.network, setting, self._budget_ms(meter))
            return Chosen(met.sized, met.measured_ms, met.how)

        # One for all seeds, and for all arms that scale the same detector.
        name = arm.network if setting == self.base.setting else arm.label
        return self._once(name, find, arm.network, setting.to_dict())

    def _drawn(self, arm: Arm, seed: int, number: int, meter: BudgetMeter) -> Chosen:
        recipe = self.divided(arm, seed)
        space = recipe.space.load()

        def find() -> Chosen:
            chance = np.random.default_rng([seed, number])
            model, budget_ms = self._cost_model(recipe), self._budget_ms(meter)
            if arm.network in JOINT:
                met = drawn_jointly(meter, model, space, recipe.settings, budget_ms, chance)
            else:
                met = meter.by_chance(model, recipe.setting, space, budget_ms, chance)
            return Chosen(met.sized, met.measured_ms, met.how)

        name = f"{arm.label} {number + 1}" if DRAWN[arm.network] > 1 else arm.label
        settings = recipe.settings if arm.network in JOINT else [recipe.setting]
        described = [setting.to_dict() for setting in settings], space.hash, seed, number
        return self._once(f"{name} seed{seed}", find, arm.network, *described, self._costs_identity)

    def _job(self, arm: Arm, seed: int) -> Preparation:
        recipe, name = self.divided(arm, seed), file_name(f"{arm.label} seed{seed}")
        costs = self._costs if recipe.search.cost == "latency" else None
        folder = self.out / "searches"
        if arm.network not in SCORED:
            return Preparation(name, arm.network, recipe, folder / name, costs)
        job = Preparation(name, "scores", recipe, folder, costs)
        return replace(job, folder=folder / f"scores-seed{seed}-{job.key()}")  # equal arms share it

    def _prepare(self, jobs: Sequence[Preparation]) -> None:
        left = list({job.folder: job for job in jobs if job.seconds() is None}.values())
        if left:
            with self.how.display(f"search {len(left)} of {len(jobs)}") as progress:
                run_jobs(left, prepare, self.how.at_once, progress, self.how.warn)

    def _candidates(self, arm: Arm, seed: int, drawn: Sequence[Chosen]) -> list[Trial]:
        epochs = candidate_epochs(arm.network, self.divided(arm, seed))
        trials = (self.trial(arm, seed, one) for one in drawn)
        return [candidate_trial(one, number, epochs) for number, one in enumerate(trials, start=1)]

    def _race(self, first: Mapping[tuple[Arm, int], Sequence[Chosen]]) -> None:
        """Train the candidates of all arms that have several."""
        trials = [
            trial
            for (arm, seed), drawn in first.items()
            if len(drawn) > 1
            for trial in self._candidates(arm, seed, drawn)
        ]
        left = [trial for trial in trials if trial.result() is None]
        if left:
            with self.how.display(f"race {len(left)} of {len(trials)}") as progress:
                run_jobs(left, run_trial, self.how.at_once, progress, self.how.warn)

    def _race_jointly(self, places: Sequence[tuple[Arm, int]]) -> None:
        """Measure the finalists of arms that choose everything together, and let them race."""
        if not places:
            return
        with self._meter("finalists") as meter:
            races = [self._joint_race(arm, seed, meter)[0] for arm, seed in places]

        def train(racers: Sequence[Racer]) -> None:
            with self.how.display(f"race {len(racers)}") as progress:
                run_jobs(racers, run_racer, self.how.at_once, progress, self.how.warn)

        run_races(races, train)

    def _joint_race(self, arm: Arm, seed: int, meter: BudgetMeter) -> tuple[Race, list[Met]]:
        """Return the race of an arm and its finalists, which are measured once."""
        recipe, job = self.divided(arm, seed), self._job(arm, seed)
        space, settings = recipe.space.load(), recipe.settings
        budget_ms, label = self._budget_ms(meter), file_name(f"{arm.label} seed{seed}")
        path = self.out / "networks" / f"{label}.finalists.json"
        described = [setting.to_dict() for setting in settings]
        inputs = [job.key(), space.hash, described, self._costs_identity]
        key = content_hash([budget_ms, self._measured, *inputs])
        found, content = load_finalists(path) if path.is_file() else ([], {})
        if content.get("key") != key:
            scores, model = Scores.load(job.scores)[0], self._cost_model(recipe)
            found = finalists(meter, scores.deriver, model, space, settings, budget_ms)
            save_finalists(found, path, key=key)
        sized = tuple(met.sized for met in found)
        return Race(label, recipe, sized, self.out / "races" / f"{label}-{key}"), found

    def _after(self, arm: Arm, seed: int, drawn: Sequence[Chosen], meter: BudgetMeter) -> Chosen:
        """Return the network of an arm, now that everything is trained that it takes."""
        if arm.network == "joint":
            return self._won(arm, seed, meter)
        if arm.network in SEARCHED:
            return self._searched(self._job(arm, seed), meter)
        if len(drawn) == 1:
            return drawn[0]
        results = [trial.result() or {} for trial in self._candidates(arm, seed, drawn)]
        best = int(np.argmax([result["metrics"]["ap"] for result in results]))
        seconds = sum(result["train_seconds"] for result in results)
        how = f"candidate {best + 1} of {len(drawn)}; {drawn[best].how}"
        return replace(drawn[best], how=how, seconds=seconds)

    def _won(self, arm: Arm, seed: int, meter: BudgetMeter) -> Chosen:
        race, found = self._joint_race(arm, seed, meter)
        best = found[race.winner]
        if doubt := race.doubt:
            self.how.warn(doubt)
        seconds = (self._job(arm, seed).seconds() or 0.0) + race.seconds
        how = f"{best.sized.setting}, finalist {race.winner + 1} of {len(found)}; {best.how}"
        return Chosen(best.sized, best.measured_ms, how, seconds)

    def _searched(self, job: Preparation, meter: BudgetMeter) -> Chosen:
        recipe, budget_ms = job.recipe, self._budget_ms(meter)

        def met(deriver: Deriver, space: SearchSpace) -> Met:
            return meter.by_scores(deriver, recipe.setting, space, budget_ms)

        def find() -> Chosen:
            if job.rule == "scores":
                deriver = Scores.load(job.scores)[0].deriver(self._cost_model(recipe))
                best = met(deriver, recipe.space.load())
            else:
                with SearchFiles(job.supernet, self._costs).open() as finished:
                    best = met(finished.deriver("ms"), finished.space)
            return Chosen(best.sized, best.measured_ms, best.how, job.seconds() or 0.0)

        return self._once(job.name, find, job.key(), self._costs_identity)

    def _cost_model(self, recipe: Recipe) -> CostModel:
        with CostTable.open(self._costs) as costs:
            check_certificate(costs)
            return latency_cost(recipe, recipe.num_classes(), costs)

    def _budget_ms(self, meter: BudgetMeter) -> float:
        """Return the budget; a share of the source stays what it was when first measured."""
        if content := self._known_budget:
            return float(content["budget_ms"])
        budget, key = self.study.budget, self._budget_key
        found = {"budget_ms": meter.budget_ms(budget), "source_ms": meter.source_ms()}
        write_json(self._budget_file, header("study-budget", key=key, budget=budget, **found))
        return found["budget_ms"]

    @property
    def _known_budget(self) -> dict[str, Any]:
        """What is known of the budget; empty before it was measured."""
        path = self._budget_file
        if not path.is_file():
            return {}
        content = check_header(read_json(path, "budget"), "study-budget", path)
        if content.get("key") != self._budget_key:
            return {}
        with parsing("budget", path, "delete it, so that it is measured again"):
            found = {
                "budget_ms": typed(PositiveFloat, content["budget_ms"]),
                "source_ms": typed(PositiveFloat | None, content.get("source_ms")),
            }
        return {**content, **found}

    @property
    def _source_ms(self) -> float | None:
        """Latency of the source when the budget was measured; None before."""
        return self._known_budget.get("source_ms")

    @property
    def _budget_file(self) -> Path:
        return self.out / "budget.json"

    @property
    def _budget_key(self) -> str:
        return content_hash([self.study.budget, self._measured, self.base.detector.to_dict()])

    @property
    def _measured(self) -> list[object]:
        """What every latency depends on."""
        return [asdict(self.base.device), self.base.input.to_dict()]

    def _once(self, name: str, find: Callable[[], Chosen], *inputs: object) -> Chosen:
        """Return a network that is found once and then read from its file."""
        path = self.out / "networks" / f"{file_name(name)}.json"
        key = content_hash([self.study.budget, self._measured, *inputs])
        known = Chosen.load(path, key)
        if known is None:
            known = find()
            known.save(path, key)
        return known

    def _check_met(self, arm: Arm, seed: int, network: Chosen) -> None:
        assert network.measured_ms
        off = network.off_budget(network.measured_ms)
        if arm.network == "joint":  # the best setting may be faster, with the whole source in it
            off = max(off, 0.0)
        if abs(off) > TOLERANCE:
            self.how.warn(
                f"{arm.label}, seed {seed}: the closest network takes "
                f"{network.measured_ms:.4g} ms, {off:+.1%} of the {network.budget_ms:.4g} ms to "
                "meet"
            )


def _certified(path: Path) -> bool:
    with CostTable.open(path) as table:
        return table.certificate is not None
