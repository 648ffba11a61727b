"""Which files are benchmarked, on which runtimes, and which rows has the report?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adapt.errors import AdaptError
from bench.peers.runner import is_peer
from export.run.pair import files_of
from export.run.runner import ARTIFACTS, check_artifact, usual_runtime

Artifacts = Mapping[str, tuple[str, Path]]  # name -> (runtime, file)


def on_runtimes(files: Sequence[Path], runtimes: Sequence[str] = ()) -> Artifacts:
    """Return the artifacts to compare: each file on every runtime that runs files of its kind.

    The two files that run as one count once, by the name of the landscape one.

    Args:
        files: Detector files.
        runtimes: Runtimes to choose from; each file's usual one if empty.

    Raises:
        AdaptError: If a file is of a kind that none of the runtimes runs.
    """
    unknown = [name for name in runtimes if name not in ARTIFACTS]
    if unknown:
        raise AdaptError(f"runtime must be one of {', '.join(ARTIFACTS)}, got {unknown[0]!r}")
    artifacts: dict[str, tuple[str, Path]] = {}
    for file in dict.fromkeys(_first_of_pair(file) for file in files):
        choice = runtimes or (usual_runtime(file),)
        fitting = [runtime for runtime in choice if ARTIFACTS[runtime] == file.suffix]
        if not fitting:
            check_artifact(choice[0], file)  # raises an error that names what runs such files
        for runtime in fitting:
            label = f" on {runtime}" if len(fitting) > 1 else ""
            name = f"{file.stem}{label}"
            artifacts[f"{file}{label}" if name in artifacts else name] = (runtime, file)
    return artifacts


def _first_of_pair(file: Path) -> Path:
    return _parts(file)[0] if file.is_file() and file.suffix in ARTIFACTS.values() else file


class Row(NamedTuple):
    """A row of the report: an artifact, or one of the two files that are evaluated as one.

    Attributes:
        label: Name of the row.
        name: Name of the artifact.
        file: The file that is timed.
        part: Which of the artifact's canvases it has.
    """

    label: str
    name: str
    file: Path
    part: int


def rows_of(artifacts: Artifacts) -> list[Row]:
    """Return the rows of all artifacts: the files for the two orientations have a latency each."""
    labels = ("{}", "{} (portrait)")
    return [
        Row(labels[part].format(name), name, file, part)
        for name, (_, path) in artifacts.items()
        for part, file in enumerate(_parts(path))
    ]


def _parts(path: Path) -> tuple[Path, ...]:
    return (path,) if path.suffix == ARTIFACTS["torch"] or is_peer(path) else files_of(path)
