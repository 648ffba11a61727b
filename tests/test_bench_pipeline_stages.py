from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from adapt.artifacts import header, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, silent_stage
from bench.pipeline.stages import Stages, Task


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
    Stages(tmp_path, silent_stage).once(Task("train", "key", first, tmp_path), writes(first))
    again = Stages(tmp_path, silent_stage)
    assert again.once(Task("train", "key", second, second.parent), writes(second)) == first
    assert again.outcomes == {"train": "reused"}
    assert not second.exists()


def test_a_stage_of_other_inputs_is_done_in_its_own_folder_or_replaced_or_refused(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "d.bin", tmp_path / "gpu" / "d.bin"
    stages = Stages(tmp_path, silent_stage)
    stages.once(Task("train", "key", first, tmp_path), writes(first))
    assert stages.once(Task("train", "other", second, second.parent), writes(second)) == second
    with pytest.raises(AdaptError, match=r"holds the stage 'train' of another recipe.*--out"):
        stages.once(Task("train", "other 2", first, tmp_path), writes(first))
    stages.once(Task("train", "other 2", first, tmp_path, replace=True), writes(first, "new"))
    assert first.read_text() == "new"


def test_a_stage_whose_file_was_deleted_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "d.bin"
    Stages(tmp_path, silent_stage).once(Task("train", "key", file, tmp_path), writes(file))
    file.unlink()
    stages = Stages(tmp_path, silent_stage)
    assert stages.once(Task("train", "key", file, tmp_path), writes(file)) == file
    assert stages.outcomes == {"train": "ran"}


@pytest.mark.parametrize("stages", [{"../../home/x": "k"}, {"/home/x": "k"}, {"x": 1}, [], None])
def test_a_record_that_leads_out_of_its_folder_is_refused(tmp_path: Path, stages: object) -> None:
    write_json(tmp_path / "run.json", header("run", stages=stages))
    with pytest.raises(AdaptError, match=r"run .*run\.json is not valid: .*; delete it"):
        Stages(tmp_path, silent_stage)


def test_a_record_of_an_earlier_version_is_of_stages_in_the_folder_itself(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", header("run", stages={"finetune derived": "key"}))
    file = tmp_path / "derived.safetensors"
    file.touch()
    stages = Stages(tmp_path, silent_stage)
    assert stages.once(Task("finetune derived", "key", file, tmp_path), writes(file)) == file
    assert stages.outcomes == {"finetune derived": "reused"}


def test_stages_together_do_what_is_left_and_keep_what_was_written_before_a_failure(
    tmp_path: Path,
) -> None:
    tasks = [Task(name, "key", tmp_path / f"{name}.bin", tmp_path) for name in ("a", "b", "c")]
    first = Stages(tmp_path, silent_stage)
    first.once(tasks[0], writes(tasks[0].file))

    def fails(left: Sequence[Task], _: Progress) -> None:
        assert left == tasks[1:]
        left[0].file.touch()
        raise AdaptError("the second one diverged")

    tasks[2].file.write_text("of other inputs; nobody recorded which")
    with pytest.raises(AdaptError, match="diverged"):
        first.together("train", tasks, fails)

    def goes_on(left: Sequence[Task], _: Progress) -> None:
        assert left == tasks[2:]
        left[0].file.write_text("new")

    again = Stages(tmp_path, silent_stage)
    assert again.together("train", tasks, goes_on) == [task.file for task in tasks]
    assert again.outcomes == {"a": "reused", "b": "reused", "c": "ran"}
