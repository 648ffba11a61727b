"""Searches take the steps of the paper, and as many as they say."""

import pytest

from search.recipe.optimisation import SearchRecipe
from search.recipe.schedule import Schedule, SearchSchedule

COCO_IMAGES = 118_287


def test_schedule_of_the_paper_alternates_for_six_epochs_of_half_of_coco() -> None:
    schedule = SearchSchedule.of(SearchRecipe(), COCO_IMAGES)
    steps = COCO_IMAGES // 2 // 8
    assert schedule == SearchSchedule(steps, 14 * steps, 8 * steps, 1)
    assert schedule.arch_steps == 6 * steps
    assert schedule.arch_step(8 * steps - 1) is None
    assert schedule.arch_step(8 * steps) == 0


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [None, 1, 3])
def test_schedule_counts_the_architecture_steps_it_takes(every: int, limit: int | None) -> None:
    schedule = SearchSchedule.of(SearchRecipe(arch_every=every), 80, limit)
    taken = [schedule.arch_step(step) for step in range(schedule.total_steps)]
    assert [number for number in taken if number is not None] == list(range(schedule.arch_steps))
    if limit is not None:
        assert (schedule.warmup_steps, schedule.arch_steps) == (limit, limit)


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [3, 6, 9, 10]), (2, [6, 10]), (9, [10])])
def test_validations_are_after_so_many_epochs_and_at_the_end(every: int, due: list[int]) -> None:
    schedule = Schedule(steps_per_epoch=3, total_steps=10)
    assert [step for step in range(1, 11) if schedule.validates(step, every)] == due
    assert schedule.validations(every) == len(due)
