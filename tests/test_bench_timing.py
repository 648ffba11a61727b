import random

import pytest

from bench.timing import Anchor, Latency, Protocol, device_description, measure


class FakeMachine:
    """A clock that only calls move, so that every latency is known."""

    def __init__(self):
        self.now = 0.0
        self.slowdown = 1.0
        self.calls = []

    def clock(self):
        return self.now

    def call(self, name, milliseconds):
        def run():
            self.calls.append(name)
            self.now += milliseconds() * self.slowdown / 1000

        return run


@pytest.fixture
def machine():
    return FakeMachine()


def test_statistics_of_known_costs(machine):
    costs = iter(range(1, 1000))
    call = machine.call("a", lambda: next(costs))
    latency = measure({"a": call}, Protocol(rounds=1, round_ms=60), clock=machine.clock)["a"]
    # Calls 1 to 3 warm up, 4 begins the round untimed, 5 to 12 add up to more than 60 ms.
    assert latency.samples == 8
    assert latency.min_ms == pytest.approx(5)
    assert latency.p50_ms == latency.mean_ms == pytest.approx(8.5)
    assert latency.p99_ms == pytest.approx(11.93)


def test_a_slow_candidate_gets_two_samples_in_every_round(machine):
    call = machine.call("slow", lambda: 5000.0)
    latency = measure({"slow": call}, Protocol(rounds=3, round_ms=1), clock=machine.clock)["slow"]
    assert (latency.samples, latency.rounds) == (6, 3)


def test_every_round_holds_every_candidate_once_in_another_order(machine):
    calls = {name: machine.call(name, lambda: 10.0) for name in "abcdefgh"}
    measure(calls, Protocol(rounds=4, round_ms=1), clock=machine.clock, seed=3)
    order = machine.calls[3 * len(calls) :: 3]  # after the warm-up, three calls each
    rounds = ["".join(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert all(sorted(names) == list("abcdefgh") for names in rounds)
    assert len(set(rounds)) == 4


def test_the_same_seed_gives_the_same_order(machine):
    calls = {name: machine.call(name, lambda: 10.0) for name in "abcdefgh"}
    for _ in range(2):
        measure(calls, Protocol(rounds=2, round_ms=1), clock=machine.clock, seed=5)
    half = len(machine.calls) // 2
    assert machine.calls[:half] == machine.calls[half:]


def test_the_global_random_state_is_left_alone(machine):
    before = random.getstate()
    measure({"a": machine.call("a", lambda: 1.0)}, Protocol(rounds=1), clock=machine.clock)
    assert random.getstate() == before


def slow_spell(machine, first, last):
    """Make the machine half as fast from one anchor call to another."""
    count = iter(range(1, 10**6))

    def anchor_ms():
        machine.slowdown = 2.0 if first <= next(count) < last else 1.0
        return 1.0

    return machine.call("anchor", anchor_ms)


def test_a_sample_taken_in_a_slow_spell_is_taken_again(machine):
    # The anchor is slow in its second check, which follows the second round's first attempt.
    anchor = Anchor(slow_spell(machine, 2, 3), calls=1, clock=machine.clock)
    call = machine.call("a", lambda: 10.0)
    latency = measure(
        {"a": call}, Protocol(rounds=3, round_ms=1), anchor=anchor, clock=machine.clock
    )["a"]
    assert machine.calls.count("anchor") == 4
    assert latency.drifted == 0
    assert latency.samples == 6


def test_a_lasting_drift_is_counted_after_bounded_retries(machine):
    anchor = Anchor(slow_spell(machine, 2, 1000), calls=1, clock=machine.clock)
    call = machine.call("a", lambda: 10.0)
    protocol = Protocol(rounds=3, round_ms=1, retries=2)
    latency = measure({"a": call}, protocol, anchor=anchor, clock=machine.clock)["a"]
    assert machine.calls.count("anchor") == 1 + 2 * 3
    assert latency.drifted == 2
    assert latency.min_ms == pytest.approx(10)
    assert not latency.reliable


def test_anchor_compares_with_its_best(machine):
    costs = iter([4.0, 2.0, 3.0])
    anchor = Anchor(machine.call("anchor", lambda: next(costs)), calls=1, clock=machine.clock)
    assert [anchor.slowdown() for _ in range(3)] == pytest.approx([0, 0, 0.5])


@pytest.mark.parametrize(("second", "reliable"), [(10.0, True), (10.9, True), (11.5, False)])
def test_rounds_that_disagree_are_unreliable(second, reliable):
    assert Latency.of([[10.0] * 5, [second] * 5]).reliable is reliable


def test_progress_reaches_the_total(machine):
    seen = []
    calls = {name: machine.call(name, lambda: 1.0) for name in "ab"}
    protocol = Protocol(rounds=3, round_ms=1)
    measure(calls, protocol, clock=machine.clock, progress=lambda *step: seen.append(step))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_device_description_names_the_processor():
    description = device_description()
    assert description["device"]
    assert description["cores"] >= 1
    assert None not in description.values()
