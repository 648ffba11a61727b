"""The page of a run shows the numbers of its files, and says what is missing."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_parts import once
from report_parts import IMAGES, write_network, write_run
from typer.testing import CliRunner

from adapt.artifacts import file_hash
from adapt.sources import mobilenet_v2, resnet50
from bench.figures.report_page import Scale, browser, generate_evaluation, shown
from bench.networks.report import read_report
from bench.report.evolution import last_change
from bench.report.folder import Folder
from bench.report.found import read_found
from bench.report.networks import block_rows
from bench.report.overview import pareto
from bench.report.page import PAGE, write_page
from cli import app
from search.supernet.history import Choice, History


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    """A run whose derived detector finds all objects, and whose source misses some; read only."""
    return once(made / "reported", write_run) / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return text_of(run)


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    ignored = shutil.ignore_patterns("index.html")
    return Path(shutil.copytree(run, tmp_path / "run", ignore=ignored))


def text_of(run: Path) -> str:
    return unescape(write_page(run).read_text(encoding="utf-8"))


def row(page: str, first: str, number: int = 0) -> list[str]:
    """Return the cells of a table's row by its first cell."""
    rows = re.findall(rf"<tr[^>]*>(<td>{re.escape(first)}</td>.*?)</tr>", page)
    return re.findall("<td>(.*?)</td>", rows[number])


def test_the_page_needs_no_other_file_and_is_small(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert len(page) < 3_000_000


def test_verdict_and_table_are_those_of_the_report(page: str, run: Path) -> None:
    derived, source = read_report(run / "report" / "report.json").entries
    assert (derived.metrics.ap, source.metrics.ap < 0.95) == (pytest.approx(1.0), True)
    gain = 100 * (derived.metrics.ap - source.metrics.ap)
    assert "derived-75 reaches 100.0 AP in 8.0 ms (7.9 to 8.1)" in page
    assert f"{gain:+.1f} AP (95 % interval" in page
    assert "in 80% of its time" in page
    ap, p50, delta, time, interval, rounds = row(page, "derived-75")[1:7]
    assert (ap, p50, time, interval, rounds) == (
        "100.0",
        "8.00",
        "80%",
        "100.0 to 100.0",
        "7.90 to 8.10",
    )
    assert delta.startswith(f"{gain:+.1f} (+")  # the interval is above zero
    assert row(page, "source")[2] == "10.00 (unreliable)"
    assert row(page, "source")[1] == f"{100 * source.metrics.ap:.1f}"


def test_prediction_trial_and_benchmark_stand_side_by_side(page: str) -> None:
    assert row(page, "derived-75", 1) == ["derived-75", "7.50", "6.50", "6.25", "7.90", "+26.4%"]


def test_ap_of_classes_and_costs_of_errors_are_those_of_the_files(page: str, run: Path) -> None:
    _, source = read_report(run / "report" / "report.json").entries
    split = read_found(Folder.open(run)).split
    assert split is not None
    labels = [split.class_names[label] for boxes in split.boxes for label in boxes.labels]
    counts = Counter(labels)
    for name, ap in source.metrics.per_class.items():
        assert ap is not None
        objects, *aps = row(page, name)[1:]
        assert int(objects) == counts[name]
        assert aps == ["100.0", f"{100 * ap:.1f}"]
    assert row(page, "all") == ["all", "100.0", f"{100 * source.metrics.ap:.1f}"]
    *_, missed = row(page, "source", 1)
    assert float(missed) == pytest.approx(100 * (1 - source.metrics.ap50), abs=0.06)
    assert set(row(page, "derived-75", 2)[2:]) == {"0.0"}


def test_finalists_are_in_the_order_of_the_race(page: str) -> None:
    assert row(page, "input 160x160") == ["input 160x160", "7.50", "41.0"]
    assert page.index("input 160x160") < page.index("input 128x128")
    assert "derived-75 by: budget 7.5 ms, verified." in page


def test_a_network_is_drawn_beside_the_source(own: Path) -> None:
    network, folder = write_network(own), Folder.open(own)
    first, second = block_rows(network, mobilenet_v2())[1:3]
    assert (first.width, first.source_width, first.ops, first.skipped) == (
        16,
        24,
        [(5, 3, False)],
        1,
    )
    assert (second.width, second.skipped) == (second.source_width, 0)
    assert "The files of derived-75, source are gone." in text_of(folder.report)


def test_a_stem_with_pooling_has_no_operation_and_bottlenecks_show_their_own() -> None:
    start, first, *_ = block_rows(resnet50(), resnet50())
    assert (start.width, start.ops) == (64, ())
    assert first.ops == [(3, 0.25, False)] * 3


def test_every_image_is_shown_once_with_its_errors(page: str) -> None:
    assert page.count("data:image/jpeg") == 8
    assert len(set(re.findall(r"<figcaption>(\S+\.jpg): F1", page))) == 8
    assert page.count('class="right"') > 0
    assert page.count('class="wrong"') == 0  # of the derived detector


def test_files_are_named_with_their_hashes(page: str, run: Path) -> None:
    stored = "report/detections/source.json"
    assert row(page, stored)[2] == file_hash(run / stored)
    assert "Some CPU" in page
    assert "torch 2.14.1" in page
    assert f"adapt report {run}" in page


def test_the_same_files_give_the_same_page(run: Path) -> None:
    assert text_of(run) == text_of(run / "report")


def test_names_are_text_on_the_page(own: Path) -> None:
    report = own / "report" / "report.json"
    report.write_text(report.read_text().replace('"Some CPU"', '"<b onclick=x>$CPU$</b>"'))
    raw = write_page(own).read_text()
    assert "<b onclick" not in raw
    assert "&lt;b onclick" in raw


def test_a_detector_whose_name_is_a_path_is_drawn_by_its_end(own: Path) -> None:
    name = f"/{'long/' * 40}derived-75.onnx on ort-cuda"
    report = own / "report" / "report.json"
    report.write_text(report.read_text().replace('"name": "derived-75"', f'"name": "{name}"'))
    text = text_of(own)
    assert f"<td>{name}</td>" in text
    assert re.search(r">…\S*long/derived-75.onnx on ort-cuda<", text)


def test_probabilities_of_every_block_are_drawn_by_epoch(own: Path, whole_search: Path) -> None:
    before = text_of(own)
    assert "There is no history of a search" in before
    (own / "search").mkdir()
    shutil.copy(whole_search / "search.jsonl", own / "search")
    history, page = History.read(own / "search/search.jsonl"), text_of(own)
    assert "There is no history of a search" not in page
    assert re.findall(r"<figcaption>(Block \d): probability", page) == [
        f"Block {number}" for number in (1, 2, 3, 4)
    ]
    maps = page.count("data:image/png") - 4  # of the scales of the colours
    assert maps == len(history.choices) == 4 + 2 + 3 + 2 + 1
    assert last_change(history) in page
    assert "The search did not decide (mean entropy" in page


def test_the_last_change_of_the_most_probable_network_is_told() -> None:
    def history(*leaders: int) -> History:
        names = ("k3_e2", "k5_e2", "skip")
        changing = Choice("block 2", "op 1", names, np.eye(3)[list(leaders)])
        unchanging = Choice("block 1", "width", names, np.eye(3)[[0] * len(leaders)])
        entries = tuple({"epoch": n + 1, "arch_loss": n or None} for n in range(len(leaders)))
        return History(entries, (unchanging, changing))

    told = "The most probable network changed last in epoch 4 of 5 (block 2 op 1 to skip)."
    assert last_change(history(1, 1, 0, 2, 2)) == told
    assert last_change(history(1, 2, 2)) == last_change(history(2, 2, 2))
    assert "the same after every epoch" in last_change(history(2, 2, 2))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


GONE = {
    "detections": (lambda run: shutil.rmtree(run / "report/detections"), "The detections are gone"),
    "place": (
        lambda run: changed(run / "report/report.json", lambda c: c.update(place=None)),
        "written by an older adapt",
    ),
    "annotations": (
        lambda run: changed(run / "report/report.json", lambda c: c.update(annotations_sha256="0")),
        "has changed since the benchmark",
    ),
    "logs": (
        lambda run: [log.unlink() for log in run.glob("*.jsonl")],
        "no training log (.training.jsonl) of derived-75, source",
    ),
    "architecture": (
        lambda run: (run / "arch-75.json").unlink(),
        "No architecture file says why",
    ),
    "an architecture, of which another file has the name": (
        lambda run: (run / "arch-75.json").write_text('{"format": "adapt-study-trial"}'),
        "No architecture file says why",
    ),
}


@pytest.mark.parametrize("what", GONE)
def test_what_is_gone_is_said_in_its_section(what: str, own: Path) -> None:
    remove, sentence = GONE[what]
    assert sentence not in text_of(own)
    remove(own)
    assert sentence in text_of(own)


def test_data_that_are_gone_are_said(own: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        content["place"]["annotations"] = "/gone/val.json"

    changed(own / "report/report.json", move)
    assert "The images cannot be read: " in text_of(own)


BAD = {
    "no folder": (lambda run: shutil.rmtree(run), "is no folder; pass the folder of a run"),
    "no run": (
        lambda run: [shutil.rmtree(run / "report"), (run / "run.json").unlink()],
        "is not the folder of a run: it holds neither run.json nor report.json",
    ),
    "half a run": (
        lambda run: shutil.rmtree(run / "report"),
        "was not benchmarked: {run}/report/report.json is missing; finish it with `adapt run`",
    ),
    "two devices": (
        lambda run: (
            [shutil.copytree(run / "report", run / d / "report") for d in "ab"]
            and shutil.rmtree(run / "report")
        ),
        "holds the reports of several devices, {run}/a/report, {run}/b/report; pass one",
    ),
    "cut report": (
        lambda run: (run / "report/report.json").write_text('{"format": '),
        "report {run}/report/report.json is not JSON (line 1",
    ),
    "another file": (
        lambda run: (run / "report/report.json").write_text("{}"),
        "report.json is not an adapt bench-report file",
    ),
    "a field of another kind": (
        lambda run: changed(
            run / "report/report.json", lambda c: c["entries"][0]["latency"].pop("p50_ms")
        ),
        "report.json is damaged (entries.0.latency.p50_ms: ",
    ),
    "no entries": (
        lambda run: changed(run / "report/report.json", lambda c: c.update(entries=[])),
        "report.json has no entries; measure again",
    ),
    "cut detections": (
        lambda run: (run / "report/detections/source.json").write_text("[{"),
        "detections {run}/report/detections/source.json is not JSON",
    ),
    "other detections": (
        lambda run: (run / "report/detections/source.json").write_text('[{"bbox": 1}]'),
        "source.json are damaged, or not of",
    ),
    "detections of another benchmark": (
        lambda run: (run / "report/detections/derived-75.json").write_text("[]"),
        "derived-75.json reach 0.00 AP, and the report 100.00: they are of another benchmark",
    ),
    "cut architecture": (
        lambda run: (run / "arch-75.json").write_text('{"format'),
        "architecture {run}/arch-75.json is not JSON",
    ),
    "a history of something else": (
        lambda run: [
            (run / "search").mkdir(),
            (run / "search/search.jsonl").write_text('{"epoch": 1.0}\n'),
        ],
        "log {run}/search/search.jsonl is not valid: probabilities is missing; run the same",
    ),
    "a log of something else": (
        lambda run: (run / "source.training.jsonl").write_text("[1]\n"),
        "log {run}/source.training.jsonl holds no reports of epochs",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_with_file_and_fix(what: str, own: Path) -> None:
    spoil, fragment = BAD[what]
    spoil(own)
    result = CliRunner().invoke(app, ["report", str(own)])
    assert result.exit_code == 1, result.output
    assert fragment.format(run=own) in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in result.output
    assert not list(own.rglob("index.html"))


def test_the_front_leaves_out_what_is_slower_and_no_better(run: Path) -> None:
    derived, source = Folder.open(run).detectors
    assert pareto([source, derived]) == [derived]


def test_intervals_are_of_paired_images(run: Path) -> None:
    found = read_found(Folder.open(run))
    low, high = found.ap["source"]
    assert found.ap["derived-75"] == (100.0, 100.0)
    assert found.gain["derived-75"] == pytest.approx((100 - high, 100 - low))
    assert found.split is not None
    assert len(found.split) == IMAGES


def test_a_run_that_was_moved_finds_its_files(own: Path) -> None:
    beside = own / "derived-75.onnx"
    beside.write_bytes(b"")
    folder = Folder.open(own)
    assert folder.artifact(folder.chosen) == beside


LARGE = Scale(images=200, classes=80, boxes=1800, detections=90, models=3)


@pytest.fixture(scope="module")
def large(made: Path) -> Path:
    """The report of three models on 80 classes, with more detections than intervals take."""
    path = once(made / "large", lambda path: write_page(generate_evaluation(path, LARGE)))
    return path / "run" / "report"


def test_a_page_of_eighty_classes_has_every_figure_and_is_small(large: Path) -> None:
    page = (large / PAGE).read_text()
    result = read_report(large / "report.json")
    assert len(page) < 3_000_000
    assert page.count("<svg") == 1 + 2 + 1 + 8  # AP over latency, precision, errors, images
    assert "Shaded: the middle half of the 80 classes, of derived-" in page
    assert "for more than 50,000 detections" in page
    assert "<details><summary>AP of every class, 80 rows</summary>" in page
    best = max(result.entries[:2], key=lambda entry: entry.metrics.ap)
    known = {name: ap for name, ap in best.metrics.per_class.items() if ap is not None}
    weakest = sorted(known, key=lambda name: known[name])[:8]
    *_, table = page.partition("<th>AP of the weakest</th>")
    assert re.findall(r"<td>(class \d\d)</td>", table)[:8] == weakest
    assert [name for name in known if page.count(f"<td>{name}</td>") < 1] == []


def test_detections_of_a_large_evaluation_are_what_the_report_says(large: Path) -> None:
    found = read_found(Folder.open(large))
    assert (dict(found.ap), dict(found.gain)) == ({}, {})
    for entry in Folder.open(large).detectors:
        assert found.precision[entry.name].mean() == pytest.approx(entry.metrics.ap, abs=1e-9)
        objects = found.matches[entry.name].objects
        assert len(objects) == LARGE.boxes
        assert len(found.matches[entry.name].detections) == LARGE.images * LARGE.detections


@pytest.mark.skipif(browser() is None, reason="chromium, which shows the page, is not installed")
@pytest.mark.parametrize("which", ["run", "large"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_the_page_without_errors_or_scrolling_sideways(
    width: int, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(which)
    told = shown(folder / PAGE if which == "large" else write_page(folder), width, tmp_path)
    assert told["console"] == []
    assert told["wide"] == told["window"] == width
