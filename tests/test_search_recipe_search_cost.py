"""Which cost tables does a search accept, and what do they say?"""

from dataclasses import replace

import pytest
from core_parts import random_architecture
from profile_parts import measurement
from simulated_device import Simulated, true_ms

from adapt.cost.table import CostTable, UnitCost
from adapt.cost.units import detector_units
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from bench.costs.profiler import profile
from bench.latency.backend import conditions
from search.recipe.budget import Budget
from search.recipe.recipe import DeviceRecipe
from search.recipe.search_cost import (
    certificate_line,
    check_certificate,
    check_table,
    latency_cost,
    network_costs,
    range_warning,
    ranking_warning,
)

CERTIFICATE = {
    "detectors": 30,
    "mape": 0.021,
    "bias": -0.013,
    "worst": 0.05,
    "kendall_tau": 0.97,
    "mape_corrected": 0.004,
    "scale": 1.1,
    "offset_ms": 0.5,
}


@pytest.fixture
def recipe(simulated_recipe):
    return simulated_recipe


@pytest.fixture
def opened(table):
    """The true costs of the recipe's space on a device that calls itself a GPU's TensorRT."""
    with CostTable.open(table, writable=True) as opened:
        yield opened


def test_costs_of_a_detector_are_true_and_corrected_once_certified(opened, recipe):
    network = random_architecture(recipe.space.load(), seed=1)
    units = detector_units(network, recipe.detector_config(3), InputSize(64, 64))
    costs = network_costs(network, recipe, 3, opened)
    assert costs["predicted_ms"] == pytest.approx(sum(map(true_ms, units)))
    assert "corrected_ms" not in costs
    opened.store("certificate", CERTIFICATE)
    corrected = network_costs(network, recipe, 3, opened)["corrected_ms"]
    assert corrected == pytest.approx(1.1 * costs["predicted_ms"] + 0.5)


def test_a_table_without_certificate_is_refused_with_the_command(opened):
    with pytest.raises(AdaptError, match=r"adapt costs certify RECIPE .*--uncertified"):
        check_certificate(opened)
    assert certificate_line(opened).endswith("costs.sqlite: not certified")


def test_a_certificate_is_accepted_and_told_in_one_line(opened):
    opened.store("certificate", CERTIFICATE)
    check_certificate(opened)
    line = certificate_line(opened)
    assert "\n" not in line
    for part in ("30 detectors", "MAPE 2.1%", "bias -1.3%", "worst 5.0%", "tau 0.97"):
        assert part in line


@pytest.mark.parametrize("known", ["range_ms", "predicted_ms"])  # the second by version 0.1.0
def test_a_budget_that_no_certified_detector_was_near_is_warned_of(opened, known):
    opened.store("certificate", {**CERTIFICATE, known: [2.0, 3.0, 4.0]})
    assert opened.certified_ms == pytest.approx((2.7, 4.9))  # corrected
    for budget in ("2.7ms", "4ms", "4.9ms", "134.9G"):
        assert range_warning(opened, Budget.parse(budget)) is None
    for budget in ("2.6ms", "5ms"):
        warning = range_warning(opened, Budget.parse(budget))
        assert f"{budget[:-2]} ms lies outside of the 2.7 to 4.9 ms" in warning
        assert f"adapt costs certify RECIPE {opened.path}" in warning


def test_a_table_that_ranks_badly_is_told(opened):
    assert ranking_warning(opened) is None  # not certified
    opened.store("certificate", CERTIFICATE)
    assert ranking_warning(opened) is None
    bad = {**CERTIFICATE, "kendall_tau": 0.47, "mape_corrected": 0.61}
    opened.store("certificate", bad)
    warning = ranking_warning(opened)
    assert f"{opened.path} ranks 30 measured detectors with a Kendall tau of 0.47" in warning
    assert "off by 61% after correction" in warning
    opened.store("certificate", {**bad, "detectors": 4})  # of four it says little
    assert ranking_warning(opened) is None


def test_no_budget_and_no_certificate_are_nothing_to_warn_of(opened):
    assert range_warning(opened, Budget.parse("1ms")) is None
    opened.store("certificate", {**CERTIFICATE, "range_ms": [2.0, 4.0]})
    assert range_warning(opened, None) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tensorrt-rtx"}, "asks for tensorrt-rtx fp32 batch 1"),
        ({"precision": "fp16"}, "asks for tensorrt fp16 batch 1"),
        ({"batch": 8}, "asks for tensorrt fp32 batch 8"),
        ({"name": "NVIDIA A100"}, r"at 64x64 \(NVIDIA A100\)"),
    ],
)
def test_tables_of_other_conditions_are_refused(opened, recipe, change, message):
    check_table(recipe, opened)
    with pytest.raises(AdaptError, match=message):
        check_table(replace(recipe, device=replace(recipe.device, **change)), opened)


def test_threads_count_on_a_processor_only(recipe, tmp_path):
    recipe = replace(recipe, device=DeviceRecipe(runtime="ort-cpu", name="a simulated device"))
    path = tmp_path / "costs"
    device = Simulated(runtime="ort-cpu", threads=2)
    profile(recipe.detectors(3), path, measurement(device))
    with (
        CostTable.open(path) as table,
        pytest.raises(AdaptError, match=r"with 2 threads, recipe 'tiny' asks for 1"),
    ):
        latency_cost(recipe, 3, table)


def test_a_table_of_free_operations_is_refused(opened, recipe):
    latency_cost(recipe, 3, opened)
    for unit in recipe.detectors(3).units()[:9]:
        opened.add({unit: UnitCost(1e-6, 1e-6, 1e-6, 1e-6, samples=9, rounds=3)})
    with pytest.raises(AdaptError, match="launch-bound"):
        latency_cost(recipe, 3, opened)


@pytest.mark.parametrize(
    ("runtime", "threads", "accepted"),
    [("ort-cpu", 1, False), ("torch", 1, False), ("torch", 0, True), ("tensorrt", 0, True)],
)
@pytest.mark.parametrize("cuda", [False, True])
def test_tables_of_another_processor_are_refused_on_every_machine(
    recipe, tmp_path, monkeypatch, runtime, threads, accepted, cuda
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    device = Simulated(runtime=runtime, threads=threads)
    elsewhere = conditions(device, recipe.input)
    recipe = replace(recipe, device=DeviceRecipe(runtime=runtime))
    with CostTable.create(tmp_path / "costs", elsewhere) as table:
        if accepted:
            check_table(recipe, table)
        else:
            with pytest.raises(AdaptError, match=r"\(a simulated device\); this search asks for"):
                check_table(recipe, table)
