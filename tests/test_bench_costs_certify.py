import math
import shutil
from pathlib import Path

import pytest
import simulated_device
import torch
from profile_parts import DETECTORS, ORT, measured_really, profiled
from simulated_device import Simulated

from adapt.cost.expectation import CostModel
from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from bench.costs.certify import WHOLE_PROTOCOL, Certificate, certify
from bench.costs.report import summarise, table_rows, write_csv, write_heat_map
from bench.latency.timing import Protocol
from bench.latency.workers import Measurement
from search.recipe.optimisation import SearchRecipe
from search.supernet.multiplier import Multiplier


@pytest.fixture(scope="module")
def table(made, tmp_path_factory):
    measured_really(made / "real.sqlite")
    path = Path(shutil.copy(made / "real.sqlite", tmp_path_factory.mktemp("certify")))
    with CostTable.open(path, writable=True) as table:
        yield table


@pytest.fixture
def simulated(tmp_path):
    simulated_device.reset()
    profiled(tmp_path / "costs", Simulated())
    with CostTable.open(tmp_path / "costs", writable=True) as table:
        yield table


def test_perfect_predictions_have_no_error():
    found = Certificate.of([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], drifted=0, seed=0)
    assert (found.mape, found.bias, found.worst, found.kendall_tau) == (0, 0, 0, 1)


def test_affine_error_is_taken_out_by_the_correction():
    found = Certificate.of([1.0, 2.0, 4.0], [2.5, 4.5, 8.5], drifted=0, seed=0)
    assert (found.scale, found.offset_ms) == (pytest.approx(2.0), pytest.approx(0.5))
    assert found.mape_corrected == pytest.approx(0.0, abs=1e-9)
    assert found.mape == pytest.approx((1.5 / 2.5 + 2.5 / 4.5 + 4.5 / 8.5) / 3)
    assert found.bias == pytest.approx(-found.mape)


@pytest.mark.parametrize(
    ("guess", "truth", "through_origin"),
    [
        ([1.0, 2.0, 3.0], [6.0, 5.0, 4.0], 28 / 14),  # falls
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 30 / 14),  # neither
        ([1.0, 2.0, 4.0], [0.1, 1.0, 9.0], 38.1 / 21),  # less than nothing for the cheapest
    ],
)
def test_correction_by_noise_keeps_order_and_sign(guess, truth, through_origin):
    found = Certificate.of(guess, truth, drifted=0, seed=0)
    assert (found.scale, found.offset_ms) == (pytest.approx(through_origin), 0)


def test_search_on_noise_has_the_cost_gradient_of_its_table():
    found = Certificate.of([4.0, 5.0, 6.0], [5.3, 5.2, 5.1], drifted=0, seed=0)
    rows, free = torch.tensor([1.0, 2.0]).double(), torch.zeros(1, 2, 1).double()
    model = CostModel(4.0, [free], [free[0]], [rows]).corrected(found.scale, found.offset_ms)
    widths = torch.tensor([0.5, 0.5]).double().requires_grad_()
    multiplier = Multiplier(SearchRecipe(cost_weight=1.0), None, model.unchanging())
    multiplier.penalty(model.expected([[torch.ones(1)]], [widths]), 1.0).backward()
    # d log10(C - F) / dp = rows / ((C - F) ln 10), whatever the correction.
    assert widths.grad.tolist() == pytest.approx((rows / (1.5 * math.log(10))).tolist())


def test_no_detector_is_corrected_by_a_line_through_itself():
    found = Certificate.of([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 8.0], drifted=0, seed=0)
    # The last one, corrected by the exact line through the others, stays at 4 instead of 8.
    assert found.mape_corrected > 0.5 / 4


def test_reversed_order_has_tau_minus_one():
    assert Certificate.of([3, 2, 1], [1, 2, 3], drifted=0, seed=0).kendall_tau == -1


def test_certificate_of_real_detectors_is_stored_in_the_table(table):
    how = Measurement(ORT, Protocol(rounds=2, round_ms=2.0))
    found = certify(table, DETECTORS, how, 4)
    assert summarise(table)["certificate"]["detectors"] == found.detectors == 4
    assert found.kendall_tau <= 1
    assert table.corrected(found.predicted_ms[0]) == pytest.approx(
        found.scale * found.predicted_ms[0] + found.offset_ms
    )


def test_a_table_of_true_costs_predicts_without_error(simulated):
    found = certify(simulated, DETECTORS, Measurement(Simulated(), WHOLE_PROTOCOL))
    assert found.detectors == 30
    assert (found.worst, found.drifted) == (pytest.approx(0, abs=1e-9), 0)
    assert found.kendall_tau == pytest.approx(1)
    assert len(set(found.measured_ms)) > 20
    assert found.range_ms == (min(found.predicted_ms), max(found.predicted_ms))
    assert simulated.certified_ms == pytest.approx(found.range_ms)


def test_too_few_detectors_are_refused(table):
    with pytest.raises(AdaptError, match="at least 4 detectors, got 3"):
        certify(table, DETECTORS, Measurement(ORT, WHOLE_PROTOCOL), 3)


def test_a_detector_that_cannot_be_measured_leaves_the_table_uncertified(simulated):
    device = Simulated(isolated=True, faults=(("build detector", "error"),))
    with pytest.raises(AdaptError, match=r"could not be measured: CUDA error.*--detectors"):
        certify(simulated, DETECTORS, Measurement(device, WHOLE_PROTOCOL), 4)
    assert simulated.certificate is None


def test_csv_and_heat_map_show_every_row(table, tmp_path):
    write_csv(table, tmp_path / "costs.csv")
    write_heat_map(table, tmp_path / "costs.png")
    assert len((tmp_path / "costs.csv").read_text().splitlines()) == len(table_rows(table)) + 1
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_costs_without_their_boundaries_are_called_unknown(simulated):
    with simulated._connection:
        simulated._connection.execute("DELETE FROM cost WHERE unit LIKE 'boundary%'")
    shown = summarise(simulated)
    assert "boundary" not in shown
    assert shown["p6"] == "2 rows, no boundary measured yet"
