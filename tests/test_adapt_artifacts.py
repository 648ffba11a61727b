"""A full disk is one sentence, whoever meets it; the limit of a file's size stands for it here."""

import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file

from adapt.artifacts import LATER, atomic_path, identity, make_place
from adapt.errors import AdaptError
from search.train.log import Draw, Entry, LogFiles, training_log

BIG = {"a": torch.zeros(100_000)}


@pytest.fixture
def small_disk() -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def save_onnx(_: Any, path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(BIG["a"].numpy(), "a")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])), path)


WRITERS = [torch.save, save_file, save_onnx, lambda _, path: path.write_bytes(bytes(2**17))]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Any, Path], None]
) -> None:
    path = tmp_path / "x.bin"
    with (
        pytest.raises(AdaptError, match=r"cannot write .*x\.bin: .*; free some space"),
        atomic_path(path) as temporary,
    ):
        write(BIG, temporary)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"is a folder; name a file in it"):
        make_place(tmp_path)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


LONG = "x" * 2**17


def write_log(folder: Path, entry: Entry, draw: Draw) -> None:
    files = LogFiles(folder / "a.jsonl", folder / "board")
    with training_log(files, 0, draw, main=True) as log:
        assert log is not None
        log.append(entry)


@pytest.mark.parametrize(
    ("entry", "draw", "named"),
    [
        ({"text": LONG}, lambda board, entry: None, r"a\.jsonl"),
        ({}, lambda board, entry: board.add_scalar(LONG, 1.0, 1), "board"),
    ],
)
@pytest.mark.usefixtures("small_disk")
def test_a_log_that_finds_no_space_names_it_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], entry: Entry, draw: Draw, named: str
) -> None:
    with pytest.raises(AdaptError, match=rf"cannot write .*{named}: File too large; free"):
        write_log(tmp_path, entry, draw)
    assert "Traceback" not in capfd.readouterr().err


@dataclass(frozen=True)
class Part:
    old: int = 1
    added: int = field(default=2, metadata=LATER)


@dataclass(frozen=True)
class Whole:
    part: Part = Part()
    names: tuple[str, ...] = ("a",)
    listed: list[int] = field(default_factory=list, metadata=LATER)


def test_a_field_of_a_later_version_counts_once_it_differs_from_its_default() -> None:
    whole = Whole()
    assert identity(whole) == {"part": {"old": 1}, "names": ("a",)}
    changed = replace(whole, part=Part(added=3), listed=[1])
    assert identity(changed) == asdict(changed)
