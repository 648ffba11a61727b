"""A study says what it showed, and what it could not show."""

from itertools import product

import pytest

from bench.study.verdict import compare_paired, half_width, sign_flip_p


@pytest.mark.parametrize("number", [2, 3, 5, 6])
def test_one_sided_differences_have_the_least_p_that_so_many_pairs_can_give(number: int) -> None:
    assert sign_flip_p([1.0 + seed for seed in range(number)]) == pytest.approx(2 / 2**number)


def test_p_is_the_share_of_sign_changes_that_are_as_extreme() -> None:
    differences = [2.0, -1.0, 0.5, 3.0]
    mean = abs(sum(differences))
    signed = (
        sum(s * d for s, d in zip(f, differences, strict=True)) for f in product((1, -1), repeat=4)
    )
    extreme = sum(abs(total) >= mean - 1e-12 for total in signed)
    assert sign_flip_p(differences) == pytest.approx(extreme / 16)


def test_many_pairs_are_tested_by_random_signs() -> None:
    assert sign_flip_p([1.0, -1.0] * 10) == 1.0
    assert sign_flip_p([1.0] * 20) < 0.001


def test_interval_is_that_of_students_t() -> None:
    # 1, 2, 3: deviation 1, t of 2 degrees of freedom 4.3027
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_six_equal_gains_are_shown_and_five_are_not() -> None:
    gains = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0]
    shown = compare_paired("a", "b", gains, [0.0] * 6)
    assert shown.shown
    assert "a is better than b: +1.00 AP" in shown.sentence()
    five = compare_paired("a", "b", gains[:5], [0.0] * 5)
    assert not five.shown
    assert "cannot show anything (p is 0.062 at least)" in five.sentence()


def test_scatter_is_told_as_what_could_have_been_shown() -> None:
    verdict = compare_paired("a", "b", [1.0, -1.0, 2.0, -2.0, 0.5, 0.0], [0.0] * 6)
    assert not verdict.shown
    assert f"6 pairs could have shown {verdict.detectable:.2f}" in verdict.sentence()


def test_a_worse_arm_is_called_worse() -> None:
    verdict = compare_paired("a", "b", [0.0] * 6, [1.0, 1.1, 0.9, 1.2, 0.8, 1.0])
    assert verdict.sentence().startswith("a is worse than b: -1.00 AP")
