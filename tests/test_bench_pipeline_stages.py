from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.artifacts import header, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, silent_stage
from bench.pipeline.stages import Stages


def writes(file: Path, text: str = "") -> Callable[[Progress], object]:
    """Work that makes the folder of its file, as stages do."""

    def work(_: Progress) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return work


def test_a_stage_of_equal_inputs_is_reused_from_whichever_device_it_was_made_for(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "d.bin", tmp_path / "gpu" / "d.bin"
    Stages(tmp_path, silent_stage).once("train", "key", first, writes(first))
    again = Stages(tmp_path, silent_stage)
    assert again.once("train", "key", second, writes(second), within=second.parent) == first
    assert again.outcomes == {"train": "reused"}
    assert not second.exists()


def test_a_stage_of_other_inputs_is_done_in_its_own_folder_or_replaced_or_refused(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "d.bin", tmp_path / "gpu" / "d.bin"
    stages = Stages(tmp_path, silent_stage)
    stages.once("train", "key", first, writes(first))
    assert stages.once("train", "other", second, writes(second), within=second.parent) == second
    with pytest.raises(AdaptError, match=r"holds the stage 'train' of another recipe.*--out"):
        stages.once("train", "other 2", first, writes(first))
    stages.once("train", "other 2", first, writes(first, "new"), replace=True)
    assert first.read_text() == "new"


def test_a_stage_whose_file_was_deleted_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "d.bin"
    Stages(tmp_path, silent_stage).once("train", "key", file, writes(file))
    file.unlink()
    stages = Stages(tmp_path, silent_stage)
    assert stages.once("train", "key", file, writes(file)) == file
    assert stages.outcomes == {"train": "ran"}


def test_a_record_of_an_earlier_version_is_of_stages_in_the_folder_itself(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", header("run", stages={"finetune derived": "key"}))
    file = tmp_path / "derived.safetensors"
    file.touch()
    stages = Stages(tmp_path, silent_stage)
    assert stages.once("finetune derived", "key", file, writes(file)) == file
    assert stages.outcomes == {"finetune derived": "reused"}
