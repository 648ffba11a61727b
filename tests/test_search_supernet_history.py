import json
from pathlib import Path
from typing import Any

import pytest

from adapt.errors import AdaptError
from search.supernet.history import History
from search.supernet.plot import heat_map


def entry(epoch: float, kernel_3: float, arch_loss: float | None = 1.0) -> dict[str, Any]:
    ops = {"k3_e2": kernel_3, "k5_e2": 1 - kernel_3}
    probabilities = {"block 1": {"width": {"4": 0.5, "8": 0.5}, "op 1": ops}}
    return {"epoch": epoch, "arch_loss": arch_loss, "probabilities": probabilities}


def written(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return path


def test_history_has_probability_leader_and_entropy_of_every_choice(tmp_path: Path) -> None:
    entries = [entry(1, 0.5, arch_loss=None), entry(2, 0.9), entry(3, 0.0)]
    history = History.read(written(tmp_path / "search.jsonl", entries))
    width, op = history.blocks["block 1"]
    assert (history.epochs, history.first_step) == ([1, 2, 3], 1)
    assert (width.candidates, op.candidates) == (("4", "8"), ("k3_e2", "k5_e2"))
    assert op.probabilities.tolist() == [[0.5, 0.5], [0.9, pytest.approx(0.1)], [0.0, 1.0]]
    assert op.leaders.tolist() == [0, 0, 1]
    assert width.entropies == pytest.approx([1, 1, 1])
    assert op.entropies == pytest.approx([1, 0.469, 0], abs=1e-3)


def test_colours_of_all_maps_are_the_same_and_a_line_follows_the_leader(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    entries = [entry(1, 0.5, arch_loss=None), entry(2, 0.9), entry(3, 0.0)]
    history = History.read(written(tmp_path / "search.jsonl", entries))
    for choice, leaders in zip(history.choices, ([0, 0], [0, 1]), strict=True):
        axes = Figure().add_subplot()
        image = heat_map(axes, history, choice)
        assert image.get_clim() == (0, 1)
        (line,) = axes.lines  # from the first step on that changed probabilities
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 3], leaders)


def test_a_search_that_only_warmed_up_has_no_step(tmp_path: Path) -> None:
    history = History.read(written(tmp_path / "search.jsonl", [entry(1, 0.5, arch_loss=None)]))
    assert history.first_step == 1


def test_an_empty_log_has_no_choices(tmp_path: Path) -> None:
    assert History.read(written(tmp_path / "search.jsonl", [])).choices == ()


DAMAGED = {
    "no reports": ("[1]\n", "it holds no reports of epochs"),
    "of a training": ('{"epoch": 1.0}\n', "probabilities is missing"),
    "of two searches": (
        json.dumps(entry(1, 0.5)) + '\n{"epoch": 2.0, "probabilities": {}}\n',
        "block 1 is missing",
    ),
    "words": ('{"epoch": 1, "probabilities": {"block 1": {"width": {"4": "much"}}}}\n', "much"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_log_is_told_in_a_sentence_with_file_and_fix(what: str, tmp_path: Path) -> None:
    text, reason = DAMAGED[what]
    log = tmp_path / "search.jsonl"
    log.write_text(text)
    with pytest.raises(AdaptError, match=reason) as caught:
        History.read(log)
    assert str(log) in str(caught.value)
    assert "run the same `adapt search` again" in str(caught.value)
