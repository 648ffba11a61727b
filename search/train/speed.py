"""How fast are training images loaded, and does training have to wait for them?"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset, Loading, epoch_batches, training_batches
from adapt.detector.file import DetectorInfo
from adapt.progress import Progress, silent
from search.recipe.recipe import Recipe
from search.train.batches import training_dataset
from search.train.finetune import Finetuning
from search.train.session import Session

SECONDS = 3.0  # of each measurement
FEW = 200  # images, where they are to be in memory
EPOCHS = 100  # at least, so that there are steps to measure
MARGIN = 1.5  # times as fast as training is enough: speeds vary


@dataclass(frozen=True)
class LoadingSpeed:
    """How fast images are loaded in one way.

    Attributes:
        workers: Processes that load; 0 loads in the training process.
        cached: Whether images come from memory, as from the second epoch on.
        images_per_second: Images, read, fitted and changed as for training.
    """

    workers: int
    cached: bool
    images_per_second: float

    def __str__(self) -> str:
        of = "in the training process" if not self.workers else f"{self.workers} processes"
        memory = ", from memory" if self.cached else ""
        return f"{self.images_per_second:.4g} images/s {of}{memory}"


@dataclass(frozen=True)
class Speeds:
    """How fast images are loaded and trained on.

    Attributes:
        loading: In each way.
        training: Images per second of a fine-tuning as the recipe says, loading included.
        workers: Processes that load, as the recipe says.
        device: Where it trains.
    """

    loading: tuple[LoadingSpeed, ...]
    training: float
    workers: int
    device: str

    @property
    def verdict(self) -> str:
        """Whether training has to wait, and what to do."""
        most = max(self.loading, key=lambda one: one.images_per_second)
        own = [one for one in self.loading if one.workers == self.workers]
        best = max(own or [most], key=lambda one: one.images_per_second)
        if best.images_per_second >= MARGIN * self.training:
            return "training does not wait for images"
        if most.images_per_second >= MARGIN * self.training:
            memory = " and data.cache_mb that holds all images" if most.cached else ""
            return f"training waits for images; set data.workers = {most.workers}{memory}"
        return "training waits for images; store smaller images, or take more processes"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "loading": [vars(one) for one in self.loading],
            "training_images_per_second": self.training,
            "workers": self.workers,
            "device": self.device,
            "verdict": self.verdict,
        }

    def readable(self) -> dict[str, Any]:
        """Return what people read."""
        training = f"{self.training:.4g} images/s on {self.device}, loading included"
        loading = [str(one) for one in self.loading]
        return {"loading": loading, "training": training, "verdict": self.verdict}


def measure_speeds(
    recipe: Recipe,
    train: CocoSplit,
    workers: Sequence[int],
    seconds: float = SECONDS,
    progress: Progress = silent,
) -> Speeds:
    """Measure how fast training images are loaded, and a fine-tuning of the source's detector.

    Args:
        recipe: How images are fitted and changed, and how it trains; weights are random.
        train: Training images.
        workers: Numbers of processes that load.
        seconds: Of each measurement.
        progress: Told after each.

    Raises:
        AdaptError: If an image cannot be read, or there are no boxes.
    """
    total, found = len(workers) + 2, []
    few = train.limit(min(FEW, len(train)))  # that are in memory after a moment
    plain = replace(recipe, data=replace(recipe.data, cache_mb=0))
    for number in workers:
        found.append(LoadingSpeed(number, False, _loading(plain, train, number, seconds)))
        progress(len(found), total, str(found[-1]))
    if recipe.data.cache_mb:
        images = training_dataset(recipe, few)
        _fill(images, recipe)
        speed = _per_second(_batches(images, recipe, Loading()), 1, seconds)
        found.append(LoadingSpeed(0, True, speed))
    progress(total - 1, total)
    epochs = max(recipe.finetune.epochs, EPOCHS)
    settings = replace(recipe.finetune, epochs=epochs, val_epochs=0, ema=0.0)
    untrained = replace(recipe, init="scratch", finetune=settings)
    config = recipe.detector_config(len(train.class_names))
    info = DetectorInfo(recipe.source, config, recipe.input, train.class_names)
    training = Finetuning(untrained, info, few, Session())
    if recipe.data.cache_mb:
        _fill(training.images, recipe)
    batch = min(recipe.finetune.batch_size, len(few))
    trained = _per_second(([None] * batch for _ in training.steps(0)), 2, seconds)
    progress(total, total)
    return Speeds(tuple(found), trained, recipe.data.workers, str(training.world.device))


def _loading(recipe: Recipe, train: CocoSplit, workers: int, seconds: float) -> float:
    images = training_dataset(recipe, train)
    loading = Loading(workers, recipe.compute.prefetch)
    # The first batches were loaded while the processes started.
    ahead = 1 + workers * recipe.compute.prefetch
    return _per_second(_batches(images, recipe, loading), ahead, seconds)


def _batches(images: DetectionDataset, recipe: Recipe, loading: Loading) -> Iterable[list[Any]]:
    size = recipe.finetune.batch_size
    batches = training_batches(images, size, seed=recipe.seed, loading=loading)
    return (pixels for pixels, _ in batches)


def _fill(images: DetectionDataset, recipe: Recipe) -> None:
    """Show all images once, so that they are in memory as far as they fit."""
    size = recipe.finetune.batch_size
    order = epoch_batches(
        len(images), size, seed=1, epoch=0, flip=images.flip, augmentation=images.augmentation
    )
    for draw in (draw for batch in order for draw in batch):
        images[draw]


def _per_second(batches: Iterable[Sequence[Any]], ahead: int, seconds: float) -> float:
    """Return the members of batches per second, after the first ones."""
    number, start = 0, time.perf_counter()
    for count, batch in enumerate(batches, start=1):
        if count <= ahead:
            start = time.perf_counter()
            continue
        number += len(batch)
        if time.perf_counter() - start >= seconds:
            break
    return number / (time.perf_counter() - start)
