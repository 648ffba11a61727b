"""Estimates follow the options that save memory."""

from typing import Any

import pytest
import torch

from search.estimate import RunEstimate, estimate_run, largest_paths
from search.recipe.recipe import Recipe


@pytest.fixture
def estimate(tiny_recipe: Recipe) -> Any:
    def found(search: dict[str, Any] | None = None, **compute: Any) -> RunEstimate:
        parts = compute.pop("accumulate", None)
        recipe = tiny_recipe.with_search(**(search or {})).with_compute(**compute)
        recipe = recipe.with_accumulate(search=parts)
        return estimate_run(recipe, images=80, num_classes=3)

    return found


def test_memory_falls_as_more_is_computed_again(estimate: Any) -> None:
    kept = {how: estimate(recompute=how) for how in ("off", "norms", "operation", "block")}
    arch = {how: found.arch.memory_gb for how, found in kept.items()}
    assert arch["operation"] < arch["norms"] < arch["off"]
    assert arch["block"] < arch["off"]
    assert kept["norms"].weight == kept["off"].weight  # weights are not frozen there
    assert kept["block"].arch.tflops == pytest.approx(1.5 * kept["off"].arch.tflops)


def test_parts_of_a_batch_and_half_precision_halve_what_is_kept(estimate: Any) -> None:
    plain, parts, half = estimate(), estimate(accumulate=2), estimate(amp="bf16")
    for other in (parts, half):
        assert other.arch.memory_gb < 0.75 * plain.arch.memory_gb
        assert other.arch.tflops == pytest.approx(plain.arch.tflops, rel=1e-3)


def test_sampled_paths_cost_less_than_all(estimate: Any) -> None:
    every = estimate({"weight_paths": "all", "arch_paths": "all"})
    two = estimate({"weight_paths": 2, "arch_paths": 2})
    one = estimate({"weight_paths": 1, "arch_paths": 1})
    for kind in ("weight", "arch"):
        tflops = [getattr(found, kind).tflops for found in (one, two, every)]
        assert tflops == sorted(set(tflops))


def test_largest_paths_are_candidates_of_their_positions(tiny_space: Any) -> None:
    from adapt.network.supernet import Supernet

    with torch.device("meta"):
        supernet = Supernet(tiny_space)
    assert largest_paths(supernet, "all") is None
    for number in (1, 2, 99):
        paths = largest_paths(supernet, number)
        assert paths is not None
        for block, chosen in zip(tiny_space.blocks, paths, strict=True):
            for position, choice in enumerate(chosen):
                picked = (choice,) if isinstance(choice, int) else choice
                assert picked
                assert max(picked) < len(block.candidates(position))
