"""Which stages of a run are done already, and which must be done (again)?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adapt.artifacts import check_header, header, parsing, read_json, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, Stage

Output = TypeVar("Output")


@dataclass(frozen=True)
class Task:
    """A stage whose file is made once.

    Attributes:
        name: Name of the stage.
        key: Hash of its inputs.
        file: What it writes.
        within: Folder in the run's folder that the stage belongs to, or the run's.
        replace: Whether a file of other inputs is written again, because that costs little.
    """

    name: str
    key: str
    file: Path
    within: Path
    replace: bool = False


class Stages:
    """Does the work of every stage once.

    ``run.json`` records from which inputs the file of a stage was made. A stage that depends on the
    device has a folder of that device, so that a run for another one repeats what depends on it and
    loses nothing.

    Args:
        folder: Folder of all results.
        display: Opens the progress display of a stage.

    Attributes:
        keys: Hash of a finished stage's inputs, by its name, after its folder if it has one.
        made_from: Hash of the inputs of every stage so far, by its name.
        outcomes: ``ran`` or ``reused`` for every stage so far.
    """

    def __init__(self, folder: Path, display: Stage) -> None:
        self._folder, self._display = folder, display
        self._record_file = folder / "run.json"
        self.keys: dict[str, str] = {}
        self.made_from: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        if (file := self._record_file).exists():
            content = check_header(read_json(file, "run"), "run", file)
            with parsing("run", file, "delete it, or choose another --out"):
                self.keys.update(_sound(content["stages"]))

    def always(self, name: str, work: Callable[[Progress], Output]) -> Output:
        """Do the work of a stage, and return what it returns."""
        output = self.aside(name, work)
        self.outcomes[name] = "ran"
        return output

    def aside(self, name: str, work: Callable[[Progress], Output]) -> Output:
        """Do what is no stage, such as a page of what stages have written; return its output."""
        with self._display(name) as progress:
            return work(progress)

    def once(self, task: Task, work: Callable[[Progress], object]) -> Path:
        """Do the work of a stage unless its file was made from the same inputs; return the file.

        Returns:
            The file, or that of another folder of this run if it was made from the same inputs.

        Raises:
            AdaptError: If the folder holds this stage of other inputs, unless it is replaced.
        """
        made = self._made(task)
        if made:
            return made
        self.always(task.name, work)
        self._record([task])
        return task.file

    def together(
        self,
        title: str,
        tasks: Sequence[Task],
        work: Callable[[Sequence[Task], Progress], object],
    ) -> list[Path]:
        """Do the work of several stages at once, of those that :meth:`once` would do.

        Args:
            title: What the progress display says, before their number.
            tasks: The stages.
            work: Writes the files of those that are left; what it wrote is kept if it fails.

        Returns:
            The file of each.

        Raises:
            AdaptError: As of :meth:`once`.
        """
        made = {task.name: self._made(task) for task in tasks}
        left = [task for task in tasks if made[task.name] is None]
        if left:
            before = {task.name: _changed(task.file) for task in left}
            with self._display(f"{title} {len(left)} of {len(tasks)}") as progress:
                try:
                    work(left, progress)
                finally:
                    # A file that lay there already, of whatever inputs, was not made by this.
                    self._record([t for t in left if _changed(t.file) != before[t.name]])
        return [made[task.name] or task.file for task in tasks]

    def _made(self, task: Task) -> Path | None:
        """Return the file that was made from the same inputs, in whichever folder.

        Raises:
            AdaptError: If the folder holds this stage of other inputs, unless it is replaced.
        """
        self.made_from[task.name] = task.key
        file = task.file.relative_to(task.within)
        for record, made_from in self.keys.items():
            folder, _, name = record.rpartition("/")
            path = self._folder / folder / file
            if (name, made_from) == (task.name, task.key) and path.is_file():
                self.outcomes[task.name] = "reused"
                return path
        if not task.replace and self.keys.get(self._name(task), task.key) != task.key:
            raise AdaptError(
                f"{task.within} holds the stage '{task.name}' of another recipe, data set or cost "
                "table; choose another folder with --out, or delete it"
            )
        return None

    def _record(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.outcomes[task.name] = "ran"
            self.keys[self._name(task)] = task.key
        write_json(self._record_file, header("run", stages=self.keys))

    def _name(self, task: Task) -> str:
        folder = task.within.relative_to(self._folder)
        return str(folder.joinpath(task.name)) if folder.parts else task.name


def _sound(record: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a record says of stages.

    Raises:
        ValueError: If it is none, or leads out of the run's folder.
    """
    for name, key in record.items():
        if not isinstance(key, str) or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"it has the stage {name!r} made from {key!r}")
    return record


def _changed(file: Path) -> int:
    """Return when a file was changed last, in nanoseconds; 0 if there is none."""
    return file.stat().st_mtime_ns if file.is_file() else 0
