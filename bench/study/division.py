"""How are the images of a data set divided anew for every seed?

The images of all its splits are pooled, shuffled and divided into parts of the same sizes, so that
no choice that was ever made on the published test images decides a study.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapt.artifacts import (
    atomic_folder,
    check_header,
    content_hash,
    header,
    read_json,
    write_json,
)
from adapt.data.coco import CocoSplit
from adapt.data.pooled import write_divided
from adapt.errors import AdaptError
from search.recipe.recipe import Recipe

PARTS = ("train", "val", "test")
MARKER = "division.json"


def divided_anew(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    """Write a COCO-format data set with the recipe's images divided anew; return its recipe.

    The images stay where they are; links lead to their folders.

    Args:
        recipe: The recipe; it needs a split of its own for each of train, val and test.
        folder: Folder of the new data set; one that is complete is used again.
        seed: Seed of the division.

    Raises:
        AdaptError: If two of the splits are the same, their images or classes do not fit, or the
            folder holds another division.
    """
    splits = _splits(recipe)
    sizes = [len(split) for split in splits]
    key = content_hash([seed, sizes, [split.sha256 for split in splits]])
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            write_divided(splits, _parts(splits, seed), temporary)
            content = header("division", key=key, seed=seed, images=sizes)
            write_json(temporary / MARKER, content)
    elif check_header(read_json(folder / MARKER, "division"), "division", folder).get("key") != key:
        raise AdaptError(
            f"{folder} holds the images of another data set; choose another folder with --out"
        )
    data = {"root": str(folder), **{name: name for name in PARTS}}
    return recipe.changed({"data": data}, "study")


def _splits(recipe: Recipe) -> list[CocoSplit]:
    names = [recipe.data.train, recipe.data.val, recipe.data.test]
    if "" in names or len(set(names)) < len(names):
        raise AdaptError(
            f"a study chooses on one split and reports another: recipe {recipe.name!r} needs "
            f"different data.train, data.val and data.test, got {names}"
        )
    train, *others = [recipe.split(name) for name in names]
    whose = str(train.annotations)
    splits = [train, *(split.matched(train.class_names, whose) for split in others)]
    paths = [image.path for split in splits for image in split.images]
    if len(set(paths)) < len(paths):
        raise AdaptError(
            f"{len(paths) - len(set(paths))} images of {recipe.data.root} are in two splits; "
            "`adapt data check` lists them"
        )
    return splits


def _parts(splits: Sequence[CocoSplit], seed: int) -> dict[str, list[int]]:
    """Return which images each part gets; it depends on no division there was before."""
    sizes = [len(split) for split in splits]
    order = np.random.default_rng(seed).permutation(sum(sizes))
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return {name: places.tolist() for name, places in zip(PARTS, parts, strict=True)}
