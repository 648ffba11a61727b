"""A front is re-ranked on held-out images and measured; the best network within the budget wins."""

import json
from dataclasses import replace

import pytest
from simulated_device import Simulated, biased, true_ms
from typer.testing import CliRunner

from adapt.architecture import Architecture
from adapt.errors import AdaptError
from bench.acceptance.refine import Refinement, candidates, refine_front
from bench.acceptance.stopwatch import Stopwatch
from bench.latency.subject import WholeDetector
from bench.latency.timing import Latency, Protocol
from bench.latency.workers import Measurement
from cli import app
from search.derive.finished import SearchFiles
from search.recipe.budget import Budget

DEVICE = Simulated(runtime="tensorrt")
SHORT = Protocol(rounds=2, round_ms=2.0)


def test_the_front_is_ranked_by_held_out_images(searched, tmp_path):
    found = refine_front(SearchFiles(searched), tmp_path, Refinement(front=8, keep=4))
    rows = found["networks"]
    assert [row["madds"] for row in rows] == sorted({row["madds"] for row in rows})
    assert len(rows) == 4
    (best,) = (row for row in rows if row["best"])
    assert best["loss"] == found["loss"] == min(row["loss"] for row in rows)
    assert best["pareto"]
    content = json.loads((tmp_path / "front.json").read_text())
    assert content["networks"] == rows
    assert content["chosen_on"] == found["chosen_on"] == "val"
    chosen = Architecture.load(tmp_path / "arch.json")
    assert chosen == Architecture.load(tmp_path / best["architecture"])
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_pareto_optimal_networks_are_marked(searched, tmp_path):
    rows = refine_front(SearchFiles(searched), tmp_path, Refinement(front=8, keep=5))["networks"]
    for row in rows:
        cheaper = [other["loss"] for other in rows if other["madds"] < row["madds"]]
        assert row["pareto"] == (row["loss"] < min(cheaper, default=float("inf")))


def test_with_a_table_latency_is_measured(searched, table, simulated_recipe, tmp_path):
    files, how = SearchFiles(searched, table, uncertified=True), Measurement(DEVICE, SHORT)
    rows = refine_front(files, tmp_path, Refinement(front=8, keep=3), how=how)["networks"]
    for row in rows:
        network = Architecture.load(tmp_path / row["architecture"])
        config, size = simulated_recipe.detector_config(3), simulated_recipe.input
        whole = WholeDetector(network, config, size)
        assert row["measured_ms"] == pytest.approx(true_ms(whole))
        assert row["predicted_ms"] == pytest.approx(row["measured_ms"])


def test_evolution_adds_networks_within_the_budget(searched, tmp_path):
    files = SearchFiles(searched)
    front = refine_front(files, tmp_path / "a", Refinement(front=8, keep=3))["networks"]
    budget = Budget("madds", front[1]["madds"])
    asked = Refinement(front=8, keep=3, generations=3, budget=budget)
    found = refine_front(files, tmp_path / "b", asked)
    bred = [row for row in found["networks"] if row["generation"]]
    assert bred
    assert all(row["madds"] <= budget.amount for row in found["networks"])
    losses = [row["loss"] for row in found["networks"]]
    assert found["loss"] == min(losses)
    everybody = json.loads((tmp_path / "b" / "front.json").read_text())["evolution"]
    assert everybody[0]["loss"] == pytest.approx(min(losses))
    assert {row["generation"] for row in everybody} >= {0, 1}


LATENCY = Latency.of([[0.0], [0.0]])


def slowed(factor):
    """A device on which whole detectors take longer by a factor, which may change per load."""

    class Slowed(Simulated):
        def load(self, built):
            timer = super().load(built)
            share = factor() if isinstance(built, WholeDetector) else 1.0
            return biased(timer, share)

    return Slowed(runtime="tensorrt")


def test_candidates_of_a_biased_table_are_measured_within_the_budget(searched, table, tmp_path):
    budget = Budget("ms", 0.3)
    asked = Refinement(front=8, keep=3, budget=budget)
    files = SearchFiles(searched, table, uncertified=True)
    how = Measurement(slowed(lambda: 1.2), SHORT)
    found = refine_front(files, tmp_path, asked, how=how)
    assert all(row["measured_ms"] <= budget.amount for row in found["networks"])
    assert max(row["measured_ms"] for row in found["networks"]) > 0.9 * budget.amount
    assert max(row["predicted_ms"] for row in found["networks"]) < budget.amount / 1.2


def test_a_network_that_was_measured_to_fit_is_always_a_candidate(searched):
    """Even if more probable ones fill all places: the table may be wrong about them."""
    with SearchFiles(searched).open() as search:
        front = search.deriver("madds").front(8)
        fits, asked = front[0], Refinement(front=8, keep=1, budget=Budget("madds", front[-1].cost))
        found = candidates(search, asked, asked.budget.amount, [fits])
    assert [one.choices for one in found] == [front[-1].choices, fits.choices]


class Canned(Stopwatch):
    """Has measured already: rounds that met a slow machine, and milliseconds."""

    def __init__(self, answers):
        self.answers = answers

    def measure_all(self, networks, *, progress=None):
        told = (self.answers[network].pop(0) for network in networks)
        return [replace(LATENCY, drifted=drifted, min_ms=ms) for drifted, ms in told]


def test_what_met_a_slow_machine_is_measured_again():
    watch = Canned({"quiet": [(1, 3.0)], "busy": [(2, 5.0), (2, 4.0), (0, 2.0)]})
    assert watch.settled(["quiet", "busy"]) == [3.0, 2.0]
    assert not any(watch.answers.values())


def test_what_turns_out_slower_than_the_budget_is_not_chosen(searched, table, tmp_path):
    loads = iter([1.0] + [3.0] * 100)  # the machine becomes slow after the first measurement
    asked = Refinement(front=8, keep=2, budget=Budget("ms", 0.6))
    files = SearchFiles(searched, table, uncertified=True)
    how = Measurement(slowed(lambda: next(loads)), SHORT)
    with pytest.raises(AdaptError, match=r"no network was measured within 0.6 ms, the fastest"):
        refine_front(files, tmp_path, asked, how=how)
    assert len(json.loads((tmp_path / "front.json").read_text())["networks"]) == 2
    assert not (tmp_path / "arch.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--refine", 3), "--refine 3 re-ranks networks of a front; add --pareto"),
        (("--pareto", 4, "--evolve", 3), "--evolve 3 breeds from re-ranked networks; add --refine"),
        (("--pareto", 4, "--refine", 5), "--refine must lie in [1, 4], the networks of --pareto"),
        (("--pareto", 4, "--refine", 2, "--data", "/nowhere"), "/nowhere"),
        (("--pareto", 4, "--refine", 2, "--budget", "4 fps"), "--budget must be like 4.0ms"),
        (("--pareto", 4, "--refine", 2, "--budget", "0.1M"), "no network costs 0.1M or less"),
        (("--pareto", 4, "--refine", 2, "--verify"), "leave out --pareto"),
        (("--refine", 2, "--verify"), "leave out --refine"),
    ],
)
def test_bad_options_are_one_sentence(searched, arguments, message, tmp_path):
    command = ["derive", str(searched), "--out", str(tmp_path), *map(str, arguments)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1, found.output
    assert message in found.stderr
    assert [line[:7] for line in found.stderr.splitlines()][-1] == "error: "


def test_a_search_without_a_data_set_asks_for_one(whole_search, tmp_path):
    with pytest.raises(AdaptError, match=r"names no data set; set data.root or pass --data"):
        refine_front(
            SearchFiles(whole_search / "supernet.pt"), tmp_path / "out", Refinement(front=4, keep=2)
        )


def test_the_command_shows_the_best_network(searched, tmp_path):
    command = ["derive", str(searched), "--pareto", "4", "--refine", "2", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["architecture"] == str(tmp_path / "arch.json")
    shown = CliRunner().invoke(app, command)
    assert "arch-02.json" in shown.stdout
