import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from adapt.data.evaluate import Metrics
from adapt.errors import AdaptError
from bench.latency.timing import Latency, Protocol
from bench.networks.footprint import Footprint
from bench.networks.measure import BenchResult, Entry
from bench.networks.report import COLUMNS, csv_text, markdown, print_result, write_report
from bench.networks.stages import STAGES

PEER = {"runtime": "ort-cpu", "version": "1", "peer": {"form": "yolo", "padding": 114}}


def entry(name, *, ap=0.525, rounds=((10.0, 12.0), (10.0, 12.0)), footprint=None, **timed):
    return Entry(
        name=name,
        artifact=Path("detector.onnx"),
        runner={"runtime": "ort-cpu", "version": "1.31.1", "device": "cpu", "threads": 1},
        precision="fp32",
        architecture="0123456789abcdef",
        height=256,
        width=320,
        batch=1,
        metrics=Metrics(ap, 0.8, 0.5, None, 0.4, 0.6, 0.7, {"cell": ap}),
        latency=Latency.of(rounds, **timed),
        madds=1.5e9,
        params=2_500_000,
        size_mb=9.3,
        footprint=footprint,
    )


@pytest.fixture
def result():
    return BenchResult(
        entries=(entry("searched"), entry("noisy", ap=0.5, rounds=((10.0,), (20.0,)))),
        annotations=Path("data/annotations/val.json"),
        images=72,
        threads=2,
        protocol=Protocol(rounds=2, round_ms=500.0),
        device={"device": "Some CPU", "cores": 4},
        versions={"python": "3.11", "torch": "2.14.1"},
    )


def test_another_number_of_detections_than_cocos_is_told(result):
    assert "detections per image" not in markdown(result)
    more = replace(result.entries[0].metrics, max_detections=300)
    (first, *others) = result.entries
    told = replace(result, entries=(replace(first, metrics=more), *others))
    assert "AP with at most 100 and 300 detections per image" in markdown(told)


def row(text, name):
    """Return the cells of a model's Markdown row by column."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    titles = [title for title, _ in COLUMNS]
    return dict(zip(titles, line.strip("| ").split(" | "), strict=True))


def test_markdown_shows_percent_and_milliseconds(result):
    cells = row(markdown(result), "searched")
    assert cells["AP"] == "52.5"
    assert cells["APs"] == "–"  # the split has no small objects
    assert cells["p50 ms"] == "11.00"
    assert cells["GMAdds"] == "1.50"


def test_a_median_that_differs_between_rounds_is_no_number(result):
    assert row(markdown(result), "noisy")["p50 ms"] == "UNRELIABLE (10.00 to 20.00)"


def test_markdown_says_why_a_median_is_no_number(result):
    assert "UNRELIABLE is noisy: its 95 % interval is 33.3% of it wide" in markdown(result)
    hot = replace(result, entries=(entry("hot", throttled=2),))
    assert "UNRELIABLE is hot: the device stayed throttled in 2 rounds." in markdown(hot)
    assert row(markdown(hot), "hot")["p50 ms"].startswith("UNRELIABLE")


def test_markdown_shows_interval_throughput_load_time_and_memory(result):
    known = entry("searched", footprint=Footprint(41.6, 55.5, 480.0, None))
    cells = row(markdown(replace(result, entries=(known,))), "searched")
    assert cells["p50 95 %"] == "11.00 to 11.00"
    assert cells["images/s"] == "90.9"  # of back-to-back calls of 11 ms
    assert (cells["load ms"], cells["host MB"], cells["GPU MB"]) == ("42", "56", "–")


def test_markdown_says_how_many_calls_warmed_up_and_whether_they_settled(result):
    both = (entry("quick", warm_up=10), entry("slow", warm_up=50, settled=False))
    said = markdown(replace(result, entries=both))
    assert "10 of quick, 50 of slow, which had not settled" in said


def test_calls_at_a_fixed_rate_say_so_and_have_no_throughput(result):
    protocol = replace(result.protocol, every_ms=100.0)
    timed = entry("camera", every_ms=100.0, late=1)
    paced = replace(result, entries=(timed,), protocol=protocol)
    assert "median (p50) latency of a call every 100 ms" in markdown(paced)
    assert "1 of 4 of camera" in markdown(paced)
    assert row(markdown(paced), "camera")["images/s"] == "–"
    assert paced.to_dict()["entries"][0]["images_per_s"] is None


@pytest.mark.parametrize(
    "fact",
    [
        *("Some CPU", "fp32", "batch 1", "2 threads", "ort-cpu 1.31.1", "torch 2.14.1"),
        *("p50", "2 rounds", "72 images", "data/annotations/val.json"),
    ],
)
def test_markdown_says_how_it_was_measured(result, fact):
    assert fact in markdown(result)


def test_csv_has_unrounded_numbers_with_units(result):
    first, second = csv.DictReader(io.StringIO(csv_text(result)))
    assert float(first["ap"]) == 0.525
    assert float(first["p50_ms"]) == 11.0
    assert first["ap_small"] == ""
    assert (first["reliable"], second["reliable"]) == ("True", "False")
    assert (second["p50_interval_low_ms"], second["p50_interval_high_ms"]) == ("10.0", "20.0")
    assert (first["load_ms"], first["host_mb"]) == ("", "")  # not measured


def test_the_fields_of_the_json_are_documented(result):
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    known = entry("known", footprint=Footprint(1.0, 1.0, 1.0, 1.0))
    content = replace(result, entries=(known,)).to_dict()
    (of_entry,) = content["entries"]
    parts = (content, content["protocol"], of_entry, of_entry["latency"], of_entry["footprint"])
    assert [name for part in parts for name in part if f"`{name}`" not in page] == []


def test_stages_and_the_network_alone_are_told(result):
    stages = dict(zip(STAGES, (4.0, 1.5, 2.25, 0.5), strict=True))
    ours = replace(entry("ours"), stages_ms=stages)
    theirs = replace(entry("theirs"), network_ms=8.0, runner=PEER, madds=None)
    both = replace(result, entries=(ours, theirs))
    said = markdown(both)
    assert "ours backbone 4.00, pyramid 1.50, heads 2.25, decoding and NMS 0.50" in said
    assert "theirs was written by another tool (form yolo, padding 114)" in said
    assert "8.00 ms alone" in said
    assert row(said, "theirs")["GMAdds"] == "–"
    first, second = csv.DictReader(io.StringIO(csv_text(both)))
    assert (first["backbone_ms"], first["decoding_and_NMS_ms"]) == ("4.0", "0.5")
    assert (second["network_ms"], second["backbone_ms"]) == ("8.0", "")


def test_json_describes_itself(result, tmp_path):
    write_report(tmp_path, result)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["format"] == "adapt-bench-report"
    assert content["device"] == {"device": "Some CPU", "cores": 4}
    assert content["entries"][0]["latency"]["p50_ms"] == 11.0
    assert content["entries"][1]["latency"]["reliable"] is False


def test_report_folder_holds_exactly_the_four_files(result, tmp_path):
    files = write_report(tmp_path / "report", result)
    names = ["report.csv", "report.json", "report.md", "report.png"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names
    assert sorted(path.name for path in files) == names


@pytest.mark.parametrize(
    ("aps", "limits"), [((0.152, 0.153), (14.25, 16.25)), ((0.2, 0.7), (10, 80))]
)
def test_a_plot_does_not_make_small_differences_of_ap_look_large(
    aps, limits, result, tmp_path, monkeypatch
):
    shown = []

    def look(figure, file, **how):
        shown.append(figure.axes[0].get_ylim())
        Path(file).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    entries = tuple(entry(f"{place}", ap=ap) for place, ap in enumerate(aps))
    write_report(tmp_path, replace(result, entries=entries))
    assert shown == [pytest.approx(limits)]


def test_plot_is_an_image_wide_enough_to_read(result, tmp_path):
    write_report(tmp_path, result)
    with Image.open(tmp_path / "report.png") as image:
        assert image.width >= 900
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 10


def test_report_into_a_file_says_where_it_cannot_write(result, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(AdaptError, match=r"cannot write .*taken"):
        write_report(tmp_path / "taken", result)


@pytest.mark.parametrize("columns", [250, 40])
def test_names_with_markup_reach_terminal_and_markdown_unchanged(
    columns, result, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", str(columns))
    odd = replace(result, entries=(entry("a[red]|b"),))
    print_result(odd)
    assert "a[red]|b" in capsys.readouterr().out
    assert "a[red]\\|b" in markdown(odd)


def test_ap_and_latency_can_be_read_in_40_columns(result, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_result(result)
    shown = capsys.readouterr().out
    for number in ("searched", "52.5", "80.0", "11.00", "1.50", "9.3", "UNRELIABLE"):
        assert f" {number} " in shown
    assert max(map(len, shown.splitlines())) <= 40


def test_a_name_with_formulas_is_drawn_as_it_is(result, tmp_path):
    odd = replace(result, entries=(entry("$\\foo$"),))
    assert (tmp_path / "report.png") in write_report(tmp_path, odd)


def test_the_terminal_says_why_a_median_is_no_number(result, capsys):
    shaky = replace(entry("shaky"), latency=replace(entry("shaky").latency, throttled=2))
    print_result(replace(result, entries=(entry("sound"), shaky)))
    said = capsys.readouterr().err
    assert "UNRELIABLE is shaky: the device stayed throttled in 2 rounds." in said
    assert "is sound" not in said
