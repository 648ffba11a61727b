"""Which stages of a run are done already, and which must be done (again)?"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from adapt.artifacts import check_header, header, read_json, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, Stage

Output = TypeVar("Output")


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
        self._record = folder / "run.json"
        self.keys: dict[str, str] = {}
        self.made_from: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        if self._record.exists():
            content = check_header(read_json(self._record, "run"), "run", self._record)
            self.keys.update(content["stages"])

    def always(self, name: str, work: Callable[[Progress], Output]) -> Output:
        """Do the work of a stage, and return what it returns."""
        with self._display(name) as progress:
            output = work(progress)
        self.outcomes[name] = "ran"
        return output

    def once(
        self,
        name: str,
        key: str,
        file: Path,
        work: Callable[[Progress], object],
        *,
        within: Path | None = None,
        replace: bool = False,
    ) -> Path:
        """Do the work of a stage unless its file was made from the same inputs; return the file.

        Args:
            name: Name of the stage.
            key: Hash of its inputs.
            file: What it writes.
            work: Writes the file.
            within: Folder in the run's folder that the stage belongs to; the run's by default.
            replace: Whether a file of other inputs is written again, because that costs little.

        Returns:
            The file, or that of another folder of this run if it was made from the same inputs.

        Raises:
            AdaptError: If the folder holds this stage of other inputs, unless it is replaced.
        """
        within = within or self._folder
        self.made_from[name] = key
        made = self._made(name, key, file.relative_to(within))
        if made:
            self.outcomes[name] = "reused"
            return made
        record = self._name(name, within)
        if not replace and self.keys.get(record, key) != key:
            raise AdaptError(
                f"{within} holds the stage '{name}' of another recipe, data set or cost table; "
                "choose another folder with --out, or delete it"
            )
        self.always(name, work)
        self.keys[record] = key
        write_json(self._record, header("run", stages=self.keys))
        return file

    def _name(self, stage: str, within: Path) -> str:
        folder = within.relative_to(self._folder)
        return str(folder.joinpath(stage)) if folder.parts else stage

    def _made(self, stage: str, key: str, file: Path) -> Path | None:
        """Return the file of a stage that was made from these inputs, in whichever folder."""
        for record, made_from in self.keys.items():
            folder, _, name = record.rpartition("/")
            path = self._folder / folder / file
            if (name, made_from) == (stage, key) and path.is_file():
                return path
        return None
