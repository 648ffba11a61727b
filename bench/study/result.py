"""What did a study find? (AP per arm and seed, verdicts on pairs of arms)"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from adapt.artifacts import header
from adapt.cost.units import detector_units, madds
from bench.acceptance.meet import LatencyBudget
from bench.study.chosen import Networks
from bench.study.latency import Latencies
from bench.study.spec import Study
from bench.study.trial import Trial
from bench.study.verdict import Verdict, compare_paired, half_width
from search.recipe.recipe import Recipe


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: Its name.
        ap: AP of 100 by seed, on images that nothing was chosen on.
        latency_ms: Latency by seed; empty if it was not measured.
        madds: Multiply-adds by seed, of the whole detector.
        seconds: Seconds of training by seed, on a machine that trains others beside.
        search_seconds: Seconds of training by seed until its network was chosen, and of its
            teacher's training.
        off_budget: Largest share, with its sign, by which a latency differs from what it had to be;
            0 without a budget or latencies.
        dropped_after: Seeds after which it was dropped by the rule of the study; None if not.
        networks: What was trained by seed: setting, backbone, and how it was chosen.
    """

    name: str
    ap: Mapping[int, float]
    latency_ms: Mapping[int, float]
    madds: Mapping[int, float]
    seconds: Mapping[int, float]
    search_seconds: Mapping[int, float]
    off_budget: float = 0.0
    dropped_after: int | None = None
    networks: Mapping[int, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean AP."""
        return fmean(self.ap.values())

    @property
    def deviation(self) -> float:
        """Standard deviation of AP over the seeds; 0 for one."""
        return stdev(self.ap.values()) if len(self.ap) > 1 else 0.0

    @property
    def half_width(self) -> float:
        """Half the 95 % interval of the mean."""
        return half_width(list(self.ap.values()))


@dataclass(frozen=True)
class StudyResult:
    """A study, finished as far as its results are here.

    Attributes:
        study: What was asked.
        recipe: What all arms started from.
        arms: The arms that have results.
        missing: Trainings without a result, which other shards do, or which were dropped.
        drift: Largest share by which a latency differed when it was measured again.
        device: The machine, as it was when latencies were measured.
        budget_ms: The latency to meet, as fast as the machine was then; None if no source was
            measured beside the others, or the budget is no share of its latency.
    """

    study: Study
    recipe: Recipe
    arms: tuple[ArmResult, ...]
    missing: tuple[str, ...]
    drift: float
    device: Mapping[str, Any]
    budget_ms: float | None = None

    @property
    def verdicts(self) -> list[Verdict]:
        """Return the comparison of every pair of arms with common seeds."""
        verdicts = []
        for first, second in combinations(self.arms, 2):
            seeds = [seed for seed in first.ap if seed in second.ap]
            if seeds:
                values = [[arm.ap[seed] for seed in seeds] for arm in (first, second)]
                verdicts.append(compare_paired(first.name, second.name, *values))
        return verdicts

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return header(
            "study",
            study=self.study.to_dict(),
            recipe=self.recipe.name,
            device=dict(self.device),
            latency_drift=self.drift,
            budget_ms=self.budget_ms,
            arms=[asdict(arm) for arm in self.arms],
            verdicts=[verdict.to_dict() for verdict in self.verdicts],
            missing=list(self.missing),
        )


def collected(
    study: Study,
    recipe: Recipe,
    trials: Sequence[Trial],
    networks: Networks,
    latencies: Latencies,
    dropped: Mapping[str, int],
) -> StudyResult:
    """Return the results that the trainings of a study have so far."""
    arms, missing = [], []
    budget_ms = budget_now_ms(study, trials, latencies)
    for arm in study.arms:
        of_arm = [trial for trial in trials if trial.arm == arm.label]
        found = {trial.seed: result for trial in of_arm if (result := trial.result())}
        missing += [trial.name for trial in of_arm if trial.seed not in found]
        if found:
            done = [trial for trial in of_arm if trial.seed in found]
            measured = {
                trial.seed: latencies.min_ms[trial.name]
                for trial in done
                if trial.name in latencies.min_ms
            }
            off = [
                networks[arm.label, seed].off_budget(ms, budget_ms) for seed, ms in measured.items()
            ]
            arms.append(
                ArmResult(
                    name=arm.label,
                    ap={seed: 100 * result["metrics"]["ap"] for seed, result in found.items()},
                    latency_ms=measured,
                    off_budget=max(off, key=abs, default=0.0),
                    madds={trial.seed: _madds(trial) for trial in done},
                    seconds={seed: result["train_seconds"] for seed, result in found.items()},
                    search_seconds={seed: networks[arm.label, seed].seconds for seed in found},
                    dropped_after=dropped.get(arm.label),
                    networks={seed: str(networks[arm.label, seed]) for seed in found},
                )
            )
    drift, device = latencies.drift, latencies.device
    return StudyResult(study, recipe, tuple(arms), tuple(missing), drift, device, budget_ms)


def budget_now_ms(study: Study, trials: Sequence[Trial], latencies: Latencies) -> float | None:
    """Return a share of the latency that the sources had beside the others, in the same rounds.

    The machine may have been faster or slower when networks were chosen.
    """
    plain = {arm.label for arm in study.arms if arm.network == "source" and not arm.recipe}
    sources = [
        latencies.min_ms[trial.name]
        for trial in trials
        if trial.arm in plain and trial.name in latencies.min_ms
    ]
    if not (study.budget and sources):
        return None
    budget = LatencyBudget.parse(study.budget)
    return budget.in_ms(fmean(sources)) if budget.relative else None


def _madds(trial: Trial) -> float:
    recipe = trial.recipe
    config = recipe.detector_config(recipe.num_classes())
    size = recipe.measured_size()
    return sum(map(madds, detector_units(trial.architecture, config, size)))
