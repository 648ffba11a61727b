"""From a finished search to networks within budgets."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from profile_parts import measurement
from simulated_device import Simulated
from typer.testing import CliRunner

from adapt.architecture import Architecture
from adapt.artifacts import header, write_json
from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from bench.costs.profiler import profile
from bench.latency.provenance import Machine
from cli import app
from search.derive.derive import derive, derive_front, fresh_front
from search.derive.finished import SearchFiles, load_searched
from search.recipe.budget import Budget


def certify(table, **line):
    zero = dict.fromkeys(("mape", "bias", "worst", "kendall_tau", "mape_corrected"), 0.0)
    with CostTable.open(table, writable=True) as opened:
        opened.store("certificate", {"detectors": 30, **zero, **line})


def test_without_a_budget_the_arg_max_is_derived(searched, tmp_path):
    derive(SearchFiles(searched), tmp_path / "a.json")
    supernet, _, _ = load_searched(searched)
    assert Architecture.load(tmp_path / "a.json") == supernet.argmax()


def test_a_generous_budget_derives_the_arg_max(searched, tmp_path):
    derive(SearchFiles(searched), tmp_path / "a.json", budget=Budget.parse("100G"))
    supernet, _, _ = load_searched(searched)
    assert Architecture.load(tmp_path / "a.json") == supernet.argmax()


def test_networks_cost_no_more_than_their_budget(searched, tmp_path):
    rows = derive_front(SearchFiles(searched), tmp_path / "front", 6)
    costs = [row["madds"] for row in rows]
    assert costs == sorted(set(costs))
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    for row in rows:
        budget = Budget("madds", row["madds"])
        found = derive(SearchFiles(searched), tmp_path / "a.json", budget=budget)
        assert found["madds"] == row["madds"]
    content = json.loads((tmp_path / "front" / "front.json").read_text())
    assert content["networks"] == rows
    assert (tmp_path / "front" / "front.png").stat().st_size > 10_000


@pytest.mark.parametrize("certified", [False, True])
def test_a_budget_in_milliseconds_counts_as_the_certificate_corrects(
    searched, table, tmp_path, certified
):
    if certified:
        certify(table, scale=1.25, offset_ms=0.25)
    files = SearchFiles(searched, table, uncertified=not certified)
    name = "corrected_ms" if certified else "predicted_ms"
    dearest = derive(files, tmp_path / "a.json")[name]
    front = derive_front(files, tmp_path / "front", 5)
    budget = (front[0][name] + dearest) / 2
    found = derive(files, tmp_path / "b.json", budget=Budget("ms", budget))
    assert front[0][name] <= found[name] <= budget < dearest


def test_a_budget_that_no_network_fits_names_the_cheapest(searched, table, tmp_path):
    out = tmp_path / "a.json"
    with pytest.raises(AdaptError, match=r"costs 0.001M or less, the cheapest costs [\d.]+M"):
        derive(SearchFiles(searched), out, budget=Budget("madds", 1000))
    with pytest.raises(AdaptError, match="a budget in milliseconds needs a cost table"):
        derive(SearchFiles(searched), out, budget=Budget.parse("4ms"))
    assert not out.exists()


def test_a_budget_that_the_error_names_can_be_met(searched, table, tmp_path):
    certify(table, scale=1.25, offset_ms=0.25)
    with pytest.raises(AdaptError, match=r"costs 0.1ms or less, the cheapest costs .*ms;") as found:
        derive(SearchFiles(searched, table), tmp_path / "a.json", budget=Budget("ms", 0.1))
    named = Budget.parse(re.search(r"cheapest costs (\S+);", str(found.value))[1])
    derived = derive(SearchFiles(searched, table), tmp_path / "a.json", budget=named)
    assert 0.99 * named.amount < derived["corrected_ms"] <= named.amount


def test_one_search_serves_devices_it_has_not_seen(searched, simulated_recipe, tmp_path):
    """The table of another runtime, precision, batch and machine decides what a network costs."""

    class Elsewhere(Simulated):
        def machine(self):
            return Machine("another processor", cores=8)

    other = tmp_path / "other.sqlite"
    device = Elsewhere(runtime="ort-cpu", precision="int8", batch=4, threads=8)
    profile(simulated_recipe.detectors(3), other, measurement(device))
    files = SearchFiles(searched, other, uncertified=True)
    dearest = derive(files, tmp_path / "a.json")["predicted_ms"]
    found = derive(files, tmp_path / "b.json", budget=Budget("ms", 0.95 * dearest))
    assert found["predicted_ms"] <= 0.95 * dearest < dearest


def test_a_new_front_replaces_the_old_one_and_nothing_else(searched, table, tmp_path):
    folder = tmp_path / "front"
    many = derive_front(SearchFiles(searched), folder, 8)
    mine = folder / "arch.json"
    mine.write_text("mine")
    with pytest.raises(AdaptError, match="certif"):
        derive_front(SearchFiles(searched, table), folder, 2)
    assert all(Path(row["architecture"]).exists() for row in many)
    few = derive_front(SearchFiles(searched), folder, 2)
    left = {path.name for path in folder.glob("arch*.json")}
    assert left == {"arch.json", *(Path(row["architecture"]).name for row in few)}
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["mine.json", "../mine.json", "/etc/arch.json", ".."])
def test_a_damaged_front_deletes_no_other_file(name, tmp_path):
    (tmp_path / "front").mkdir()
    for folder in (tmp_path, tmp_path / "front"):
        (folder / "mine.json").write_text("{}")
    write_json(
        tmp_path / "front" / "front.json",
        header("front", networks=[{"architecture": name}, {"architecture": "arch-01.json"}]),
    )
    fresh_front(tmp_path / "front")
    assert len(list(tmp_path.rglob("mine.json"))) == 2


def test_a_table_of_another_tail_is_refused(searched, table, tmp_path):
    with CostTable.open(table) as opened:
        conditions = replace(opened.conditions, tail="onnx-nms")
    CostTable.create(tmp_path / "other.sqlite", conditions).close()
    files = SearchFiles(searched, tmp_path / "other.sqlite", uncertified=True)
    with pytest.raises(AdaptError, match=r"end in onnx-nms, detectors for tensorrt end in tensor"):
        derive(files, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("4.0ms", "ms", 4.0),
        ("850us", "ms", 0.85),
        ("134.9G", "madds", 134.9e9),
        ("9M", "madds", 9e6),
    ],
)
def test_budgets_are_read_with_their_unit(text, unit, amount):
    budget = Budget.parse(text)
    assert (budget.unit, budget.amount) == (unit, pytest.approx(amount))


@pytest.mark.parametrize("text", ["4", "ms", "-1ms", "0G", "1..2ms", "4 fps"])
def test_other_budgets_are_refused(text):
    with pytest.raises(AdaptError, match=r"must be like 4.0ms or 134.9G"):
        Budget.parse(text)


def test_the_command_derives_a_front_or_one_network(searched, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["derive", str(searched), *map(str, arguments)])

    front = run("--pareto", 4, "--out", tmp_path / "front", "--json")
    assert front.exit_code == 0, front.output
    cheapest = json.loads(front.stdout)["networks"][0]
    one = run("--budget", f"{cheapest['madds'] / 1e6}M", "--out", tmp_path / "a.json", "--json")
    assert json.loads(one.stdout)["madds"] == cheapest["madds"]
    both = run("--budget", "1G", "--pareto", 4)
    assert (both.exit_code, both.stderr.startswith("error: --pareto derives for many")) == (1, True)
