import random

import pytest

from bench.latency.provenance import DeviceState
from bench.latency.timing import Anchor, Latency, Protocol, Sample, measure, wall_timer


class FakeMachine:
    """A clock that only calls move, so that every latency is known."""

    def __init__(self):
        self.now = 0.0
        self.slowdown = 1.0
        self.calls = []

    def timer(self, name, milliseconds):
        def run():
            self.calls.append(name)
            self.now += milliseconds() * self.slowdown / 1000

        return wall_timer(run, lambda: self.now)


@pytest.fixture
def machine():
    return FakeMachine()


def test_statistics_of_known_costs(machine):
    costs = iter(range(1, 1000))
    timer = machine.timer("a", lambda: next(costs))
    latency = measure({"a": timer}, Protocol(rounds=1, round_ms=60))["a"]
    # Calls 1 to 3 warm up, 4 begins the round untimed, 5 to 12 add up to more than 60 ms.
    assert latency.samples == 8
    assert latency.min_ms == pytest.approx(5)
    assert latency.p50_ms == latency.mean_ms == pytest.approx(8.5)
    assert latency.p99_ms == pytest.approx(11.93)


def test_a_slow_candidate_gets_two_samples_in_every_round(machine):
    timer = machine.timer("slow", lambda: 5000.0)
    latency = measure({"slow": timer}, Protocol(rounds=3, round_ms=1))["slow"]
    assert (latency.samples, latency.rounds) == (6, 3)


class TestSamplesThatAreMeansOfManyRuns:
    """A GPU's: the mean is 20 us, taking the sample lasts 1 ms."""

    @pytest.fixture
    def timer(self):
        self.taken = 0

        def run():
            self.taken += 1
            return Sample(0.02, 1.0)

        return run

    def test_a_round_lasts_as_long_as_asked(self, timer):
        latency = measure({"a": timer}, Protocol(rounds=3, round_ms=10))["a"]
        assert (latency.samples, latency.min_ms) == (3 * 10, 0.02)

    def test_the_warm_up_of_the_anchor_lasts_as_long_as_asked(self, timer):
        anchor = Anchor(timer)
        anchor.warm_up(200)
        assert (self.taken, anchor.best_ms) == (200, 0.02)


def test_a_round_of_many_samples_adds_up_each_of_them_once():
    """Their time is counted on, not added up again after each: that would take minutes here."""
    latency = measure({"a": lambda: Sample(1.0, 0.001)}, Protocol(rounds=1, round_ms=300))["a"]
    assert 299_000 < latency.samples < 301_000


def test_every_round_holds_every_candidate_once_in_another_order(machine):
    timers = {name: machine.timer(name, lambda: 10.0) for name in "abcdefgh"}
    measure(timers, Protocol(rounds=4, round_ms=1), seed=3)
    order = machine.calls[3 * len(timers) :: 3]  # after the warm-up, three calls each
    rounds = ["".join(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert all(sorted(names) == list("abcdefgh") for names in rounds)
    assert len(set(rounds)) == 4


def test_the_same_seed_gives_the_same_order(machine):
    timers = {name: machine.timer(name, lambda: 10.0) for name in "abcdefgh"}
    for _ in range(2):
        measure(timers, Protocol(rounds=2, round_ms=1), seed=5)
    half = len(machine.calls) // 2
    assert machine.calls[:half] == machine.calls[half:]


def test_the_global_random_state_is_left_alone(machine):
    before = random.getstate()
    measure({"a": machine.timer("a", lambda: 1.0)}, Protocol(rounds=1))
    assert random.getstate() == before


def slow_spell(machine, first, last):
    """Make the machine half as fast from one anchor call to another."""
    count = iter(range(1, 10**6))

    def anchor_ms():
        machine.slowdown = 2.0 if first <= next(count) < last else 1.0
        return 1.0

    return machine.timer("anchor", anchor_ms)


def test_a_sample_taken_in_a_slow_spell_is_taken_again(machine):
    # Call 1 warms the anchor up; it is slow in its second check, which follows the first attempt
    # at the second round.
    anchor = Anchor(slow_spell(machine, 3, 4), calls=1)
    timer = machine.timer("a", lambda: 10.0)
    protocol = Protocol(rounds=3, round_ms=1, warm_up_ms=1)
    latency = measure({"a": timer}, protocol, anchor=anchor)["a"]
    assert machine.calls.count("anchor") == 1 + 4
    assert latency.drifted == 0
    assert latency.samples == 6


def test_a_lasting_drift_is_counted_after_bounded_retries(machine):
    anchor = Anchor(slow_spell(machine, 3, 1000), calls=1)
    timer = machine.timer("a", lambda: 10.0)
    protocol = Protocol(rounds=3, round_ms=1, retries=2, warm_up_ms=1)
    latency = measure({"a": timer}, protocol, anchor=anchor)["a"]
    assert machine.calls.count("anchor") == 1 + 1 + 2 * 3
    assert latency.drifted == 2
    assert latency.min_ms == pytest.approx(10)
    assert not latency.reliable


def test_a_throttled_device_counts_as_slow_though_its_anchor_is_fast(machine):
    hot = DeviceState(throttled="power cap, software thermal slowdown")
    states = iter([hot, DeviceState(1410.0, 60.0), DeviceState()])
    anchor = Anchor(machine.timer("anchor", lambda: 1.0))
    protocol = Protocol(rounds=2, round_ms=1, retries=1)
    timer = machine.timer("a", lambda: 10.0)
    latency = measure({"a": timer}, protocol, anchor=anchor, state=lambda: next(states))["a"]
    assert latency.drifted == 0
    assert latency.state == DeviceState()
    assert next(states, None) is None


def test_a_power_cap_is_no_drift_though_it_slows_the_anchor(machine):
    capped = DeviceState(clock_mhz=1200.0, throttled="power cap")
    anchor = Anchor(machine.timer("anchor", lambda: 1.2), best_ms=1.0)
    protocol = Protocol(rounds=3, round_ms=1, retries=2)
    timer = machine.timer("a", lambda: 10.0)
    latency = measure({"a": timer}, protocol, anchor=anchor, state=lambda: capped)["a"]
    assert (latency.drifted, latency.state) == (0, capped)
    assert machine.calls.count("a") == 3 + 3 * 3


def costs(machine, values):
    left = iter(values)
    return machine.timer("anchor", lambda: next(left))


def test_an_anchor_is_slow_if_all_its_calls_exceed_its_best(machine):
    anchor = Anchor(costs(machine, [2.0, 2.1, 2.1, 2.1, 2.01]), calls=2)
    assert [anchor.slow(0.02) for _ in range(3)] == [False, True, False]
    assert anchor.best_ms == pytest.approx(2.0)


def test_an_anchor_remembers_its_best_of_an_earlier_measurement(machine):
    anchor = Anchor(costs(machine, [2.1, 1.9, 1.9]), calls=1, best_ms=2.0)
    assert [anchor.slow(0.02) for _ in range(3)] == [True, False, False]
    assert anchor.best_ms == pytest.approx(1.9)


def test_the_warm_up_of_the_anchor_lasts_as_long_as_asked(machine):
    anchor = Anchor(machine.timer("anchor", lambda: 3.0))
    anchor.warm_up(10.0)
    assert len(machine.calls) == 4


def test_a_latency_remembers_by_which_best_of_the_anchor_its_rounds_were_good(machine):
    # The machine is slow until after the first of two rounds: nobody can know then.
    anchor = Anchor(costs(machine, [2.0, 2.0, 1.0, 1.0]), calls=1)
    protocol = Protocol(rounds=1, round_ms=1, warm_up_ms=1)
    early = measure({"a": machine.timer("a", lambda: 10.0)}, protocol, anchor=anchor)["a"]
    late = measure({"a": machine.timer("a", lambda: 10.0)}, protocol, anchor=anchor)["a"]
    assert (early.drifted, late.drifted) == (0, 0)
    assert (early.anchor_ms, late.anchor_ms) == (pytest.approx(2.0), pytest.approx(1.0))


@pytest.mark.parametrize(("second", "reliable"), [(10.0, True), (10.9, True), (11.5, False)])
def test_rounds_that_disagree_are_unreliable(second, reliable):
    assert Latency.of([[10.0] * 5, [second] * 5]).reliable is reliable


def test_spread_compares_the_slow_samples_with_the_fast_ones():
    assert Latency.of([[1.0] * 5, [1.5] * 5]).spread == pytest.approx(0.5)


def test_progress_reaches_the_total(machine):
    seen = []
    timers = {name: machine.timer(name, lambda: 1.0) for name in "ab"}
    protocol = Protocol(rounds=3, round_ms=1)
    measure(timers, protocol, progress=lambda *step: seen.append(step))
    assert seen == [(done, 6) for done in range(1, 7)]
