import numpy as np
import pytest

from bench.latency.interval import median_interval


def test_equal_rounds_have_an_interval_of_no_width():
    assert median_interval([[10.0, 12.0]] * 5) == (11.0, 11.0)


def test_two_rounds_span_the_interval():
    """A quarter of the draws holds each of them alone."""
    assert median_interval([[10.0] * 4, [20.0] * 4]) == (10.0, 20.0)


def test_calls_within_a_round_do_not_narrow_it():
    chance = np.random.default_rng(0)
    speeds = chance.normal(10, 1, 8)
    few, many = ([[speed] * calls for speed in speeds] for calls in (5, 500))
    assert median_interval(few) == median_interval(many)


def test_a_round_counts_by_its_calls():
    """The long round is two thirds of all calls, so that the median is its value in most draws."""
    low, high = median_interval([[10.0] * 400, [20.0] * 100, [20.0] * 100])
    assert (low, high) == (10.0, 20.0)
    assert median_interval([[10.0] * 4, *[[20.0]] * 2]) == (low, high)


def test_the_same_rounds_give_the_same_interval():
    rounds = np.random.default_rng(1).normal(10, 1, (10, 30)).tolist()
    assert median_interval(rounds) == median_interval(rounds)
    assert median_interval(rounds) != median_interval(rounds, seed=1)


def test_it_covers_the_true_median_about_as_often_as_it_says():
    """Ten rounds, whose speeds differ by 2 %: so few make it a little narrow."""
    chance = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        speeds = chance.normal(10, 0.2, (10, 1))
        low, high = median_interval((speeds + chance.normal(0, 0.05, (10, 40))).tolist(), 300)
        covered.append(low <= 10 <= high)
    assert np.mean(covered) == pytest.approx(0.93, abs=0.05)


def test_thousands_of_calls_are_summarised_closely():
    rounds = [np.random.default_rng(seed).normal(10 + seed / 10, 1, 20_000) for seed in range(6)]
    low, high = median_interval(rounds)
    exact = np.median(np.concatenate(rounds))
    assert low < exact < high
    assert high - low < 0.5
