"""How many trainings does a study have, and how long do they take? (`adapt study --dry-run`)"""

from pathlib import Path
from typing import Any

from bench.pipeline.plan import plan_run
from bench.pipeline.run import Costs
from bench.study.preparation import source_epochs
from bench.study.spec import CHOSEN_ANEW, SCORED, Arm, Study
from search.recipe.recipe import Recipe

AS_JOINT = ("joint", "random-joint-best-of-k")
MEASURED = ("profile", "certify")  # once for all arms


def plan_study(
    study: Study, recipe: Recipe, out: Path, costs: Path | None, at_once: int
) -> dict[str, Any]:
    """Return the trainings of a study, and hours on this machine, training on one thread each.

    Args:
        study: The study.
        recipe: What all arms start from.
        out: Folder of the results.
        costs: Cost table; measured if None and an arm needs one.
        at_once: Trainings that run side by side.

    Raises:
        AdaptError: If the recipe's data cannot be read.
    """
    import torch

    torch.set_num_threads(1)  # as the trainings
    hours, unknown = 0.0, set[str]()
    plans: dict[int, dict[str, float | str]] = {}  # by epochs: arms hardly differ otherwise

    def seconds(stage: str, plan: dict[str, float | str]) -> float:
        value = plan.get(stage, 0.0)
        if isinstance(value, str):
            unknown.add(f"{stage}: {value}")
            return 0.0
        return value

    for arm in study.arms:
        of_arm = study.recipe_of(arm, recipe, 0).with_search(choice="probability")
        if of_arm.finetune.epochs not in plans:
            plans[of_arm.finetune.epochs] = plan_run(of_arm, out, Costs(costs), None).seconds
        plan = plans[of_arm.finetune.epochs]
        trained = seconds("finetune source", plan)
        before = _epochs_before(arm, of_arm) / of_arm.finetune.epochs * trained
        searched = (
            seconds("search", plan) if arm.network in ("softmax", "random-best-of-k") else 0.0
        )
        each = trained + before + searched
        hours += study.seeds * each / 3600
    measured = any(arm.network in CHOSEN_ANEW for arm in study.arms) and not costs
    table = sum(seconds(stage, plan) for stage in MEASURED) / 3600 if measured else 0.0
    return {
        "arms": [arm.label for arm in study.arms],
        "seeds": study.seeds,
        "trainings": study.seeds * len(study.arms),
        "hours": round(hours / at_once + table, 2),
        "hours_of_the_cost_table": round(table, 2),
        **({"not_in_the_hours": sorted(unknown)} if unknown else {}),
        "method": f"one thread per training, {at_once} side by side, on a quiet machine",
    }


def _epochs_before(arm: Arm, recipe: Recipe) -> int:
    """Return the epochs that an arm trains before it chooses, a search's left out.

    Random candidates with their settings have as many together as the arm ``joint``.
    """
    raced = recipe.joint.raced_epochs if arm.network in AS_JOINT else 0
    return raced + (source_epochs(recipe) if arm.network in (*SCORED, *AS_JOINT) else 0)
