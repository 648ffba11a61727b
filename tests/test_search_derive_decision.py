"""A search that did not decide says so, wherever it is read."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli import app
from search.derive.decision import Decision, undecided_entry
from search.derive.finished import load_searched
from search.supernet.plot import plot_search
from search.train.log import read_log

OLD = Path(__file__).parent / "data" / "made_at_852bcc6" / "supernet.pt"


@pytest.mark.parametrize(
    ("ops", "widths", "undecided"),
    [(0.91, 0.2, True), (0.2, 0.91, True), (0.9, 0.9, False), (0.0, 0.0, False)],
)
def test_either_entropy_above_nine_tenths_is_undecided(ops, widths, undecided):
    decision = Decision(ops, widths)
    assert bool(decision.doubt) is decision.to_dict()["undecided"] is undecided


def test_doubt_is_one_line_with_the_figures_and_what_to_do():
    doubt = Decision(0.953, 1.0).doubt
    assert "entropy 0.95 of operations, 1.00 of widths" in doubt
    for remedy in ("search.weights.epochs", "search.arch_lr", "--target"):
        assert remedy in doubt
    assert "\n" not in doubt


@pytest.mark.parametrize("old", [True, False])
@torch.no_grad()
def test_file_alone_tells_what_the_supernet_in_it_decided(old, searched):
    path = OLD if old else searched
    supernet, _, _ = load_searched(path)
    found, expected = Decision.stored(path), Decision.of(*supernet.probabilities())
    assert found.to_dict() == pytest.approx(expected.to_dict())
    for parameter in supernet.architecture_parameters():
        parameter[0] = 20
    assert Decision.of(*supernet.probabilities()).doubt == ""


def test_log_and_plot_tell_of_a_search_that_ended_undecided(searched, tmp_path, monkeypatch):
    *before, last = read_log(searched.parent / "search.jsonl")
    assert undecided_entry(last)
    assert not any(map(undecided_entry, before))
    titles = []

    def look(figure, *_, **__):
        titles.append(figure.subfigs[0].axes[2].get_title())

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    for entry in (last, {**last, "op_entropy": 0.1, "width_entropy": 0.1, "warnings": []}):
        log = tmp_path / "search.jsonl"
        log.write_text(json.dumps(entry) + "\n")
        plot_search(log, tmp_path / "search.png")
    assert ["did not decide" in title for title in titles] == [True, False]


def test_derive_tells_of_a_search_that_ended_undecided(searched, tmp_path):
    out = str(tmp_path / "a.json")
    result = CliRunner().invoke(app, ["derive", str(searched), "--out", out, "--json"])
    assert json.loads(result.stdout)["decided"]["undecided"]
    assert "warning: the search did not decide (mean entropy" in result.stderr


def test_search_that_decided_is_derived_without_a_word(searched, tmp_path):
    content = torch.load(searched, weights_only=True)
    for name, tensor in content["states"]["detector"].items():
        if ".alphas." in name or ".betas." in name:
            tensor[0] = 20
    torch.save(content, tmp_path / "supernet.pt")
    result = CliRunner().invoke(app, ["derive", str(tmp_path / "supernet.pt"), "--json"])
    assert result.exit_code == 0
    assert not json.loads(result.stdout)["decided"]["undecided"]
    assert "did not decide" not in result.stderr
