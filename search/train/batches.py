"""Which images does a training step get? (halves of a search, shares of processes, parts)"""

from collections.abc import Iterator

import torch

from adapt.data.coco import CocoSplit, check_has_boxes
from adapt.data.dataset import Batch, DetectionDataset, Loading
from adapt.data.sampling import repeat_factors
from adapt.errors import AdaptError
from search.recipe.optimisation import Optimisation
from search.recipe.recipe import Recipe
from search.train.world import World


def split_halves(split: CocoSplit, seed: int) -> tuple[CocoSplit, CocoSplit]:
    """Divide the training images by shuffled image id into trainA and trainB (Eq. 3).

    Raises:
        AdaptError: If there are fewer than two images, or no boxes.
    """
    check_has_boxes(split)
    if len(split) < 2:
        raise AdaptError(
            f"{split.annotations} has {len(split)} image; a search divides the training images "
            "into two halves and needs at least 2"
        )
    ids = sorted(image.id for image in split.images)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(ids) // 2
    return (
        split.subset([ids[i] for i in order[:half]]),
        split.subset([ids[i] for i in order[half : 2 * half]]),
    )


def training_dataset(recipe: Recipe, split: CocoSplit) -> DetectionDataset:
    """Return a split as training images, fitted, changed and cached as the recipe says."""
    data = recipe.data
    return DetectionDataset(
        split,
        recipe.input,
        flip=data.flip,
        augmentation=data.augment,
        crowds=data.ignore_crowds,
        repeats=repeat_factors(split, data.rare) if data.rare else (),
        cache_mb=data.cache_mb,
    )


def training_loading(recipe: Recipe, world: World) -> Loading:
    """Return which processes load, and which images of every batch are this process's."""
    return Loading(recipe.data.workers, recipe.compute.prefetch, (world.rank, world.size))


def check_shares(optimisation: Optimisation, images: int, world: World) -> None:
    """Check that a batch divides evenly among the processes, and each share into its parts.

    Raises:
        AdaptError: With the numbers.
    """
    share = world.share(min(optimisation.batch_size, images))
    if world.size > 1 and share % optimisation.accumulate:
        raise AdaptError(
            f"the {share} images of each process cannot be taken in {optimisation.accumulate} "
            "equal parts; choose another accumulate, batch_size or number of processes"
        )


def divided(batch: Batch, number: int) -> Iterator[tuple[float, Batch]]:
    """Divide a batch for gradient accumulation.

    Args:
        batch: Images and targets.
        number: Parts; fewer if there are fewer images.

    Yields:
        Share of the batch's images, and the part itself.
    """
    images, targets = batch
    size = -(-len(images) // number)
    for start in range(0, len(images), size):
        end = start + size
        part = images[start:end], targets[start:end]
        yield len(part[0]) / len(images), part
