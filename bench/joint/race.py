"""Which of several detectors of one latency learns best? (successive halving on held-out AP)"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.artifacts import (
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.detector.file import read_detector_info
from adapt.progress import Progress
from bench.acceptance.scaling import Sized
from search.recipe.recipe import Recipe
from search.train.job import FinetuneJob, finetune

LEAST_AP = 0.5  # percent; below it, AP says nothing of networks


@dataclass(frozen=True)
class Racer:
    """The short training of a finalist in one round.

    Attributes:
        job: The training; it validates at its end.
        number: Which finalist it is.
    """

    job: FinetuneJob
    number: int

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.job.name

    @property
    def file(self) -> Path:
        """The result."""
        return self.job.path.with_suffix(".json")

    def result(self) -> dict[str, Any] | None:
        """Return AP in percent and seconds; None if it was not trained so yet."""
        if not self.file.is_file():
            return None
        content = check_header(read_json(self.file, "result"), "racer", self.file)
        if content.get("key") != self.job.key():
            return None
        with parsing("result", self.file, "delete it, so that it is trained again"):
            numbers = {name: typed(float, content[name]) for name in ("val_ap", "seconds")}
        return {**content, **numbers}


def run_racer(racer: Racer, progress: Progress, warn: Callable[[str], object]) -> None:
    """Train it and write its result; the trained detector is of no further use.

    The seconds are those of the process that ends the training.

    Raises:
        AdaptError: If weights are missing or the loss diverges.
    """
    start = time.perf_counter()
    finetune(racer.job, progress, warn)
    seconds = round(time.perf_counter() - start, 1)
    _, content = read_detector_info(racer.job.path)
    ap = content["written"]["val_ap"]
    write_json(racer.file, header("racer", key=racer.job.key(), val_ap=ap, seconds=seconds))
    racer.job.path.unlink()


@dataclass(frozen=True)
class Race:
    """A race of detectors; it stops and resumes between trainings.

    Attributes:
        name: Name in messages, if several races run together.
        recipe: How all are trained, on which images, and how many survive a round.
        finalists: The detectors.
        folder: Folder of its files.
        start: Trained detector whose parameters they start from; the pretrained source if None.
        limit_steps: As of a session.
    """

    name: str
    recipe: Recipe
    finalists: tuple[Sized, ...]
    folder: Path
    start: Path | None = None
    limit_steps: int | None = None

    def key(self) -> str:
        """Return the hash of everything that the race depends on."""
        jobs = [self._racer(index, 0, 1).job.key() for index in range(len(self.finalists))]
        joint = self.recipe.joint
        return content_hash([jobs, joint.epochs, joint.survivors])

    def round(self, number: int) -> list[Racer]:
        """Return the trainings of a round; those before it must be done."""
        count, epochs = self.recipe.joint.rounds(len(self.finalists))[number]
        best = self._ranked(number - 1)[:count] if number else range(len(self.finalists))
        return [self._racer(index, number, epochs) for index in best]

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return len(self.recipe.joint.rounds(len(self.finalists)))

    @property
    def winner(self) -> int:
        """The finalist that won; all rounds must be done."""
        return self._ranked(self.rounds - 1)[0] if self.rounds else 0

    def results(self) -> list[list[dict[str, Any]]]:
        """Return of every round what each finalist reached; all rounds must be done."""
        return [
            [
                {"finalist": racer.number, "epochs": epochs, **_told(racer)}
                for racer in self.round(number)
            ]
            for number, (_, epochs) in enumerate(self.recipe.joint.rounds(len(self.finalists)))
        ]

    @property
    def doubt(self) -> str:
        """Say in one sentence why the winner is hardly better than the others; empty if it is."""
        if not self.rounds:
            return ""
        last = [result["val_ap"] for result in self.results()[-1]]
        if max(last) >= LEAST_AP:
            return ""
        return (
            f"{self.name}: none of {len(self.finalists)} finalists reached an AP of {LEAST_AP}, so "
            "that the first of them won; raise joint.epochs"
        )

    @property
    def seconds(self) -> float:
        """Seconds of all trainings."""
        return float(sum(one["seconds"] for of_round in self.results() for one in of_round))

    def _ranked(self, number: int) -> list[int]:
        """Return the finalists of a round by falling AP; of equal ones the first."""
        racers = self.round(number)
        ranked = sorted(racers, key=lambda racer: -_told(racer)["val_ap"])
        return [racer.number for racer in ranked]

    def _racer(self, index: int, number: int, epochs: int) -> Racer:
        sized = self.finalists[index]
        training = {
            "epochs": epochs,
            "val_epochs": epochs,
            "keep": "last",
            "patience": 0,
            "shared_epochs": 0,
            "teacher_weight": 0,
        }
        recipe = self.recipe.changed({"finetune": training, **sized.changes()}, "race")
        path = self.folder / f"round{number + 1}-{index + 1}.safetensors"
        name = f"{self.name} round {number + 1}, finalist {index + 1}"
        job = FinetuneJob(
            name,
            recipe,
            sized.architecture,
            path,
            self.limit_steps,
            self.start,
            measure_lost=False,
        )
        return Racer(job, index)


def run_races(races: Sequence[Race], train: Callable[[Sequence[Racer]], object]) -> None:
    """Train all rounds of several races, each round of all of them together.

    Args:
        races: The races.
        train: Does :func:`run_racer` with each of several trainings.

    Raises:
        AdaptError: If weights are missing or a loss diverges.
    """
    for number in range(max((race.rounds for race in races), default=0)):
        racers = [racer for race in races if number < race.rounds for racer in race.round(number)]
        left = [racer for racer in racers if racer.result() is None]
        if left:
            train(left)


def _told(racer: Racer) -> dict[str, Any]:
    result = racer.result()
    assert result is not None
    return {"val_ap": result["val_ap"], "seconds": result["seconds"]}
