import io
import os
import sys

import pytest
from typer.testing import CliRunner

from adapt.artifacts import read_json, write_json
from adapt.command_line import show
from adapt.terminal import print_fields, print_rows, write_any_text
from cli import app

ROWS = (("model", "p50 ms", "AP"), [("some-detector-int8", "UNRELIABLE (1.00 to 2.00)", "52.5")])


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")


def test_a_table_stands_in_columns_where_there_is_room(capsys):
    print_rows(*ROWS, caption="measured here")
    first, *more = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        *("some-detector-int8", "UNRELIABLE", "52.5")
    ]
    assert [line.split("│")[2].strip() for line in more] == ["(1.00 to", "2.00)"]


def test_a_table_that_does_not_fit_stands_row_by_row(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "28")
    print_rows(*ROWS, caption="measured here")
    shown = capsys.readouterr().out
    for words in ("p50 ms │ UNRELIABLE", "AP     │ 52.5", "measured here"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 28


@pytest.mark.parametrize("columns", ["80", "40", "20"])
def test_no_part_of_a_value_is_left_out(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    path = "/data/" + "sets/" * 20 + "x.json"
    print_fields({"annotations": path, "images": "3"})
    lines = capsys.readouterr().out.splitlines()[1:-1]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert "".join(value for _, value in cells) == f"{path}3"


@pytest.mark.parametrize("text", ["[red]", "[/]", "[x](y)", ":smile:", "[b]y[/b]"])
def test_names_are_no_markup(text, narrow, capsys):
    print_fields({text: f"{text}1"}, title=f"{text}2")
    print_rows((text, "AP"), [(f"{text}3", f"{text}4")], caption=f"{text}5")
    shown = capsys.readouterr().out
    assert [n for n in range(1, 6) if f"{text}{n}" not in shown] == []


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"| Gef\xe4\xdf +-1 -> \u7d30\udcff |"),
        ("cp1252", r"| Gefäß ±1 -> \u7d30\udcff |"),
        ("utf-8", r"│ Gefäß ±1 → 細\udcff │"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_others_words(encoding, shown, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    write_any_text()
    print_fields({"class": "Gefäß ±1 → 細\udcff"}, title="λ – …")
    sys.stdout.flush()
    lines = written.getvalue().decode(encoding).splitlines()
    assert lines[2].endswith(shown)
    if encoding != "utf-8":  # where a character takes another number of columns, none is askew
        assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("command", [["--help"], ["data", "check", "--help"], ["data", "nix"]])
def test_help_and_errors_are_shown_in_ascii(command):
    result = CliRunner(charset="ascii").invoke(app, command)
    assert result.exit_code in (0, 2)
    assert not isinstance(result.exception, UnicodeError)


def test_names_of_files_that_are_no_text_are_read_as_they_were_written(tmp_path):
    write_json(tmp_path / "x.json", {"file_name": "bad\udcff.png"})
    assert read_json(tmp_path / "x.json", "file") == {"file_name": "bad\udcff.png"}


def test_a_closed_pipe_ends_a_command_as_it_ends_others(monkeypatch, capfd):
    monkeypatch.setattr("adapt.network.weights.find_weights", lambda source: source)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            app(["weights", "mobilenet_v2"])
        stdout.flush()  # as Python does when it ends
    assert ended.value.code == 141
    assert capfd.readouterr().err == ""


def test_a_broken_pipe_that_is_not_stdout_is_an_error_with_its_traceback(monkeypatch):
    def broken(source: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("adapt.network.weights.find_weights", broken)
    monkeypatch.setattr("cli.leave_closed_pipes", lambda: False)
    result = CliRunner().invoke(app, ["weights", "mobilenet_v2"])
    assert isinstance(result.exception, RuntimeError)


def test_results_for_a_closed_stdout_go_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_fields({"class": "Gefäß"}, title="λ")
    print_rows(*ROWS, caption="measured here")


def test_a_full_disk_behind_stdout_is_one_sentence(monkeypatch, capfd):
    monkeypatch.setattr("adapt.network.weights.find_weights", lambda source: source)
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            app(["weights", "mobilenet_v2"])
        monkeypatch.setattr("sys.stdout", sys.__stdout__)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert ended.value.code == 1
    assert "error: cannot write to stdout: No space left on device" in capfd.readouterr().err


def test_fields_are_named_in_words_and_names_in_them_stay(capsys):
    show({"empty_images": 1, "weights mnasnet1_0": "missing"}, as_json=False)
    shown = capsys.readouterr().out
    assert "empty images" in shown
    assert "weights mnasnet1_0" in shown
