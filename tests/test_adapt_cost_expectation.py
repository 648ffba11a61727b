import hashlib
from dataclasses import replace
from typing import get_args

import pytest
import torch
from core_parts import Indices, one_block, one_hot, random_choices
from torch import Tensor

from adapt.architecture import Choices
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import CostForm, CostModel, detector_cost
from adapt.cost.units import P6, Lateral, MBConvUnit, Unit, detector_units, madds, unit_key
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.space import BlockSpace, SearchSpace

TABLE_ONE = SearchSpace.load("mobilenet_v2")
CONFIG = DetectorConfig(80)
SIZE = InputSize(800, 1088)
# An arbitrary cost per operation of the 2 x 2 space, by (input width, width, kernel).
COSTS = {(4, 2, 3): 1.0, (4, 2, 5): 2.0, (4, 6, 3): 5.0, (4, 6, 5): 11.0}


def by_hand(unit: Unit) -> float:
    """1000 for what is fixed, the table for the operations, 0.1 per channel for the taps."""
    if isinstance(unit, MBConvUnit) and unit.expansion == 2:
        return COSTS.get((unit.c_in, unit.c_out, unit.kernel), 100.0 * unit.c_in + unit.c_out)
    return 0.1 * unit.c_in if isinstance(unit, Lateral | P6) else 1000.0


def random_latency(unit: Unit) -> float:
    """A repeatable number in [0, 1) for every unit."""
    digest = hashlib.sha256(unit_key(unit).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def expected(
    space: SearchSpace, ops: list[list[Tensor]], widths: list[Tensor], form: CostForm = "exact"
) -> float:
    model = DetectorSpace(space, CONFIG, InputSize(64, 96)).costs(by_hand)
    return float(model.expected(ops, widths, form))


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_expected_cost_is_equations_five_to_eight_by_hand() -> None:
    a, b = doubles(0.25, 0.75), doubles(0.4, 0.6)
    narrow = 0.25 * 1 + 0.75 * 2  # Eq. 8
    wide = 0.25 * 5 + 0.75 * 11
    fixed = 3 * 1000  # stem, first block, rest
    taps = 0.4 * (0.2 + 0.2) + 0.6 * (0.6 + 0.6)  # lateral and P6
    by_equations = fixed + taps + 0.4 * narrow + 0.6 * wide  # Eq. 5 to 7
    assert expected(one_block(), [[a]], [b]) == pytest.approx(by_equations, rel=1e-12)


@pytest.mark.parametrize("form", get_args(CostForm))
def test_what_no_choice_changes_is_the_cost_without_its_searchable_rows(form: CostForm) -> None:
    choices = random_choices(TABLE_ONE, seed=2)
    network = Choices.of(*choices).architecture(TABLE_ONE)
    searched = [unit for unit in detector_units(network, CONFIG, SIZE) if is_searched(unit)]
    model = DetectorSpace(TABLE_ONE, CONFIG, SIZE).costs(random_latency)
    if form == "exact":
        rows = sum(map(random_latency, searched))
        cost = detector_cost(network, CONFIG, SIZE, random_latency)
        assert cost - model.unchanging(form) == pytest.approx(rows)
    # It is what a detector would cost whose choices were free, whichever they are.
    free = [[torch.zeros_like(t) for t in ts] for ts in (model.first, model.later)]
    taps = [torch.zeros_like(t) for t in model.taps] if form == "exact" else model.taps
    only = CostModel(model.fixed, *free, taps)
    for seed in range(3):
        probabilities = one_hot(TABLE_ONE, random_choices(TABLE_ONE, seed))
        assert float(only.expected(*probabilities, form)) == pytest.approx(model.unchanging(form))


def is_searched(unit: Unit) -> bool:
    return isinstance(unit, Lateral | P6) or (isinstance(unit, MBConvUnit) and unit.expansion > 1)


def test_a_skipped_operation_costs_nothing() -> None:
    space = one_block(num_ops=2)
    a, b = doubles(1, 0), doubles(1, 0)
    base = 3000 + 0.4 + 1
    later = 100 * 2 + 2  # at 2 -> 2 channels, whatever its kernel
    third = doubles(0.25, 0.25, 0.5)
    assert expected(space, [[a, third]], [b]) == pytest.approx(base + 0.5 * later, rel=1e-12)


def two_blocks() -> SearchSpace:
    one = one_block()
    second = BlockSpace(num_ops=1, stride=1, kernels=(3,), expansions=(2,), widths=(8, 10))
    return replace(one, blocks=(*one.blocks, second), taps=(1, 2))


@pytest.mark.parametrize("form", get_args(CostForm))
def test_forms_differ_in_the_input_width_and_the_laterals(form: CostForm) -> None:
    p, q = doubles(0.4, 0.6), doubles(0.3, 0.7)
    ops = [[doubles(1, 0)], [doubles(1)]]
    c_in = 0.4 * 2 + 0.6 * 6 if form == "exact" else 6  # the mean input width, or the widest
    c_out = 0.3 * 8 + 0.7 * 10 if form == "exact" else 10
    first = 0.4 * 1 + 0.6 * 5
    second = 100 * c_in + 0.3 * 8 + 0.7 * 10
    taps = 0.1 * c_in + 0.2 * c_out
    total = 3000 + first + second + taps
    assert expected(two_blocks(), ops, [p, q], form) == pytest.approx(total, rel=1e-12)


@pytest.fixture(scope="module")
def madds_model() -> CostModel:
    return DetectorSpace(TABLE_ONE, CONFIG, SIZE).costs(madds)


@pytest.fixture(scope="module")
def latency_model() -> CostModel:
    return DetectorSpace(TABLE_ONE, CONFIG, SIZE).costs(random_latency)


@pytest.mark.parametrize("seed", range(50))
def test_one_hot_choices_cost_what_the_derived_detector_costs(
    madds_model: CostModel, latency_model: CostModel, seed: int
) -> None:
    choices: Indices = random_choices(TABLE_ONE, seed)
    architecture = Choices.of(*choices).architecture(TABLE_ONE)
    decided = one_hot(TABLE_ONE, choices)
    assert float(madds_model.expected(*decided)) == detector_cost(architecture, CONFIG, SIZE, madds)
    latency = detector_cost(architecture, CONFIG, SIZE, random_latency)
    assert float(latency_model.expected(*decided)) == pytest.approx(latency, rel=1e-9)


def uniform() -> tuple[list[list[Tensor]], list[Tensor]]:
    ops = [
        [torch.zeros(len(b.candidates(p)), requires_grad=True) for p in range(b.num_ops)]
        for b in TABLE_ONE.blocks
    ]
    return ops, [torch.zeros(len(b.widths), requires_grad=True) for b in TABLE_ONE.blocks]


@pytest.mark.parametrize("form", get_args(CostForm))
def test_cost_rises_with_the_widest_and_falls_with_the_narrowest(
    madds_model: CostModel, form: CostForm
) -> None:
    alphas, betas = uniform()
    ops = [[a.softmax(0) for a in block] for block in alphas]
    madds_model.expected(ops, [b.softmax(0) for b in betas], form).backward()
    for beta in betas:
        assert beta.grad[-1] > 0 > beta.grad[0]


def test_cost_rises_with_kernel_and_expansion_and_falls_with_skip(madds_model: CostModel) -> None:
    alphas, betas = uniform()
    ops = [[a.softmax(0) for a in block] for block in alphas]
    madds_model.expected(ops, [b.softmax(0) for b in betas]).backward()
    for block in alphas:
        for alpha in block[1:]:
            k3_e3, k3_e6, k5_e3, _, _, k7_e6, skip = alpha.grad.tolist()
            assert skip < k3_e3 < k5_e3 < k3_e6 < k7_e6


def test_expected_cost_is_a_float64_also_for_float32_probabilities(
    madds_model: CostModel,
) -> None:
    alphas, betas = uniform()
    ops = [[a.softmax(0) for a in block] for block in alphas]
    cost = madds_model.expected(ops, [b.softmax(0) for b in betas])
    assert cost.dtype == torch.float64
    assert cost.shape == ()


def test_costs_keep_their_values_on_another_device(madds_model: CostModel) -> None:
    moved = madds_model.to(torch.device("cpu"))
    assert moved.fixed == madds_model.fixed
    assert all(torch.equal(a, b) for a, b in zip(moved.first, madds_model.first, strict=True))
