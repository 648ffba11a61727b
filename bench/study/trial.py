"""What AP does one arm reach with one seed? (train, deploy, evaluate on images not chosen on)"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.artifacts import check_header, content_hash, header, read_json, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, ignore, silent
from bench.networks.evaluation import evaluate_artifact
from bench.pipeline.target import Target
from bench.study.spec import file_name
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune
from search.train.session import Session
from search.train.teacher import TrainedFiles


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        arm: Name of the arm.
        seed: Seed of everything that is random.
        recipe: How it is trained, on which images, and where it is deployed.
        architecture: The backbone.
        folder: Folder of its files.
        teacher: The trained detector that it imitates, if it has a teacher.
    """

    arm: str
    seed: int
    recipe: Recipe
    architecture: Architecture
    folder: Path
    teacher: Path | None = None

    @property
    def name(self) -> str:
        """Name of its files, and in messages."""
        return file_name(f"{self.arm} seed{self.seed}")

    @property
    def file(self) -> Path:
        """The result."""
        return self.folder / f"{self.name}.json"

    @property
    def detector(self) -> Path:
        """The trained detector."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def artifact(self) -> Path:
        """The deployed detector."""
        return Target(self.recipe).artifact(self.name, self.detector, self.folder)

    def key(self) -> str:
        """Return the hash of everything that the result depends on."""
        data = self.recipe.data
        splits = [self.recipe.split(name) for name in (data.train, data.val, data.test)]
        images = [split.sha256 for split in splits]
        device = self.recipe.device
        deployed = [device.runtime, device.precision, device.batch]
        taught = [self.teacher.stem] if self.teacher else []  # which says what it was made from
        of_network = [self.recipe.finetune_hash, self.architecture.hash]
        return content_hash([*of_network, *images, *deployed, *taught])

    def result(self) -> dict[str, Any] | None:
        """Return the result; None if there is none yet.

        Raises:
            AdaptError: If the file is damaged, or of another recipe, network or data set.
        """
        if not self.file.is_file():
            return None
        content = check_header(read_json(self.file, "result"), "study-trial", self.file)
        if content.get("key") != self.key():
            raise AdaptError(
                f"{self.file} is of another recipe, network or data set; choose another folder "
                "with --out, or delete it"
            )
        return content


def run_trial(
    trial: Trial, progress: Progress = silent, warn: Callable[[str], object] = ignore
) -> None:
    """Train, deploy and evaluate; write the result. A stopped one continues.

    The seconds in the result are those of the process that ended the training.

    Args:
        trial: What to train.
        progress: Told after every step.
        warn: Called with every warning.

    Raises:
        AdaptError: If the loss diverges or the detector cannot be deployed.
    """
    recipe = trial.recipe
    train, start = recipe.split(recipe.data.train), time.perf_counter()
    session = Session(progress=progress, warn=warn, measure_lost=False)
    trained = TrainedFiles(teacher=trial.teacher)
    run_finetune(recipe, trial.architecture, train, trial.detector, session, trained)
    seconds = time.perf_counter() - start
    if trial.artifact != trial.detector:
        Target(recipe).deploy(
            trial.detector, trial.artifact, train, trial.folder / "timing-cache", silent
        )
    test, runtime = recipe.split(recipe.data.test), recipe.device.runtime
    metrics = evaluate_artifact(trial.artifact, test, runtime)
    content = header(
        "study-trial",
        key=trial.key(),
        arm=trial.arm,
        seed=trial.seed,
        architecture=trial.architecture.to_dict(),
        detector=recipe.detector.to_dict(),
        metrics=metrics.to_dict(),
        train_seconds=round(seconds, 1),
    )
    write_json(trial.file, content)
