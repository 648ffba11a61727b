import itertools
import random

import pytest
import simulated_device
from simulated_device import Simulated

from adapt.cost.units import Stem
from bench.latency.provenance import DeviceState
from bench.latency.subject import ANCHOR
from bench.latency.timing import (
    Anchor,
    Latency,
    Protocol,
    Sample,
    measure,
    paced_timer,
    wall_timer,
)


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


# Half of the interval is (second - 10) / 2 wide.
@pytest.mark.parametrize(("second", "reliable"), [(10.0, True), (10.5, True), (10.7, False)])
def test_rounds_that_disagree_are_unreliable(second, reliable):
    assert Latency.of([[10.0] * 5, [second] * 5]).reliable is reliable


def test_a_latency_says_why_it_is_unreliable():
    assert Latency.of([[10.0]] * 5).doubts == []
    worst = Latency.of([[10.0], [12.0]], drifted=1, throttled=1)
    assert worst.doubts == [
        "its 95 % interval is 9.1% of it wide to each side",
        "the machine stayed slow in 1 of 2 rounds",
        "the device stayed throttled in 1 rounds",
    ]


def test_one_slow_round_of_ten_and_outliers_leave_a_median_reliable(machine):
    """Two calls of a hundred take fifty times as long: p99 tells of them, the median does not."""
    costs = itertools.cycle([500.0, *[10.0] * 49])
    anchor = Anchor(slow_spell(machine, 3, 6), calls=1)
    protocol = Protocol(rounds=10, round_ms=2000, retries=2, warm_up_ms=1)
    latency = measure({"a": machine.timer("a", lambda: next(costs))}, protocol, anchor=anchor)["a"]
    assert (latency.drifted, latency.doubts) == (1, [])
    assert latency.p50_ms == pytest.approx(10)
    assert latency.p50_interval_ms == pytest.approx((10, 10))
    assert latency.p99_ms > 400


def test_a_drift_that_the_anchor_does_not_see_shows_in_the_interval(machine):
    """The candidate alone becomes 2 % slower with every round."""
    count = itertools.count()
    timer = machine.timer("a", lambda: 10.0 * 1.02 ** (next(count) // 10))
    latency = measure({"a": timer}, Protocol(rounds=10, round_ms=90), anchor=None)["a"]
    assert latency.doubts[0].startswith("its 95 % interval")


def test_throttling_that_stays_makes_a_latency_unreliable(machine):
    hot = DeviceState(throttled="hardware slowdown")
    states = iter([hot] * 3 + [DeviceState()] * 9)
    protocol = Protocol(rounds=10, round_ms=1, retries=2)
    timer = machine.timer("a", lambda: 10.0)
    latency = measure({"a": timer}, protocol, state=lambda: next(states))["a"]
    assert (latency.throttled, latency.drifted) == (1, 1)
    assert latency.doubts == ["the device stayed throttled in 1 rounds"]


@pytest.mark.parametrize(
    ("noise", "drift", "throttling", "reliable"),
    [(0.01, 0.0, 0.0, True), (0.01, 0.6, 0.0, False), (0.01, 0.0, 0.6, False)],
)
def test_a_simulated_device_gets_a_number_only_while_it_is_undisturbed(
    noise, drift, throttling, reliable
):
    simulated_device.reset()
    device = Simulated(noise=noise, drift=drift, throttling=throttling, seed=3)
    anchor = Anchor(device.load(ANCHOR))
    protocol = Protocol(rounds=10, round_ms=2000)
    unit = Stem(32, 320, 320)
    timers = {"a": device.load(unit)}
    latency = measure(timers, protocol, anchor=anchor, state=device.state)["a"]
    assert latency.reliable is reliable
    if reliable:
        low, high = latency.p50_interval_ms
        assert low <= latency.p50_ms <= high


class TestWarmUp:
    def test_ends_when_two_windows_take_equally_long(self, machine):
        costs = itertools.chain([40.0] * 5, [20.0] * 5, itertools.repeat(10.0))
        timer = machine.timer("a", lambda: next(costs))
        latency = measure({"a": timer}, Protocol(rounds=2, round_ms=1, settle_calls=50))["a"]
        assert (latency.warm_up, latency.settled) == (20, True)
        assert machine.calls.count("a") == 20 + 2 * 3

    def test_that_does_not_settle_is_told_and_ends(self, machine):
        count = itertools.count(1)
        timer = machine.timer("a", lambda: 10.0 * next(count))
        latency = measure({"a": timer}, Protocol(rounds=2, round_ms=1, settle_calls=20))["a"]
        assert (latency.warm_up, latency.settled) == (20, False)

    def test_takes_three_calls_if_it_need_not_settle(self, machine):
        latency = measure({"a": machine.timer("a", lambda: 10.0)}, Protocol(rounds=2))["a"]
        assert latency.warm_up == 3


class TestPaced:
    def paced(self, machine, cost, every_ms):
        def sleep(seconds):
            self.slept.append(seconds)
            machine.now += seconds

        self.slept = []
        return paced_timer(machine.timer("a", cost), every_ms, lambda: machine.now, sleep)

    def test_calls_start_at_a_fixed_rate(self, machine):
        protocol = Protocol(rounds=2, round_ms=1000, every_ms=100.0)
        timer = self.paced(machine, lambda: 30.0, 100.0)
        latency = measure({"a": timer}, protocol)["a"]
        assert latency.p50_ms == pytest.approx(30)
        assert latency.samples == pytest.approx(2 * 10, abs=2)  # a second of calls per round
        assert set(map(round_to_ms, self.slept)) == {70}
        assert (latency.late, latency.mean_ms) == (0, pytest.approx(30))

    def test_a_call_that_takes_too_long_is_late_and_builds_up_no_queue(self, machine):
        costs = itertools.cycle([30.0, 30.0, 250.0, 30.0])
        timer = self.paced(machine, lambda: next(costs), 100.0)
        for _ in range(4):
            timer()
        assert list(map(round_to_ms, self.slept)) == [70, 70]  # none after the third
        timer()
        assert round_to_ms(self.slept[-1]) == 70
        protocol = Protocol(rounds=1, round_ms=2000, every_ms=100.0)
        latency = measure({"a": timer}, protocol)["a"]
        assert latency.late == pytest.approx(latency.samples / 4, abs=1)


def round_to_ms(seconds):
    return round(1000 * seconds)


def test_spread_compares_the_slow_samples_with_the_fast_ones():
    assert Latency.of([[1.0] * 5, [1.5] * 5]).spread == pytest.approx(0.5)


def test_progress_reaches_the_total(machine):
    seen = []
    timers = {name: machine.timer(name, lambda: 1.0) for name in "ab"}
    protocol = Protocol(rounds=3, round_ms=1)
    measure(timers, protocol, progress=lambda *step: seen.append(step))
    assert seen == [(done, 6) for done in range(1, 7)]
