"""Which steps does `adapt init` take, from a folder of images to a recipe that runs?"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.artifacts import write_text
from adapt.data.coco import check_has_boxes, load_split
from adapt.data.layout import check_folder, dead_entry, has_split, split_names
from adapt.detector.objects import Objects
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Runtime
from search.advice.advise import Advice, advise, learned
from search.advice.held_out import hold_out
from search.advice.recipe_file import device_kind, fixed_settings, recipe_text
from search.recipe.content import validated
from search.recipe.recipe import Recipe

NO_TEST = (
    "there is no `test` split, so that AP is reported of `val`, on which networks are chosen: it "
    "will be too good; divide off images that nothing is chosen on, as `test`"
)


@dataclass(frozen=True)
class AdvisedRecipe:
    """A recipe and why it is as it is.

    Attributes:
        path: The file to write.
        name: Its name.
        settings: Its settings with their reasons.
        found: What the data set holds.
        doubts: What may be wrong, one sentence each.
    """

    path: Path
    name: str
    settings: Mapping[str, Advice]
    found: Mapping[str, Any]
    doubts: tuple[str, ...]

    def text(self, minutes: float | None = None) -> str:
        """Return the file's content.

        Args:
            minutes: How long the run takes here, if that is known.
        """
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.found.items())
        notes = [f"Written by `adapt init`. {told}.", "Change what you know better."]
        if "search.target" not in self.settings:
            notes.append(
                "It sets no latency: `adapt run` keeps that of the source, or --budgets 75%."
            )
        if minutes:
            notes.append(f"`adapt run` of it takes about {minutes:.0f} minutes on this machine.")
        return recipe_text(self.name, self.settings, notes)

    @property
    def recipe(self) -> Recipe:
        """The recipe, as it will be read from the file."""
        content = tomllib.loads(self.text())
        return validated(Recipe, content, f"recipe {self.path}").relative_to(self.path.parent)

    def save(self, minutes: float | None = None) -> None:
        """Write the file."""
        write_text(self.path, self.text(minutes))


def advised_recipe(
    root: Path, out: Path, runtime: Runtime, target: str = "", progress: Progress = silent
) -> AdvisedRecipe:
    """Return a recipe that fits a data set; one without ``val`` is divided beside the recipe.

    Args:
        root: Folder of the data set.
        out: Recipe to write.
        runtime: Runtime of the deployed detector.
        target: Latency to meet; empty for that of the source.
        progress: Told after every image that is compared with others.

    Raises:
        AdaptError: If the data set cannot be read or has no boxes, or the target is none.
    """
    training = _training_split(root)
    if out.suffix != ".toml":
        raise AdaptError(f"a recipe is a .toml file, got --out {out}; name it {out.name}.toml")
    if target:  # one that is none is told before images are looked at
        Recipe().with_search(cost="latency", target=target)
    names = {"train": training} | {name: name for name in ("val", "test") if _has(root, name)}
    splits = {name: load_split(root, of, repair=True) for name, of in names.items()}
    train = splits["train"]
    for split in splits.values():
        check_has_boxes(split)
    doubts = [text for one in splits.values() for text in (one.repaired(), one.cornered()) if text]
    found: dict[str, Any] = {name: len(split) for name, split in splits.items()}
    if "val" not in splits:
        if dead := dead_entry(root, "val"):
            doubts.append(f"{dead}; training images are held out in its place")
        test = splits.get("test")
        test = test.matched(train.class_names, str(train.annotations)) if test else None
        root = out.with_name(f"{out.stem}-data")
        found = {"held_out_in": str(root), **hold_out(train, root, test, progress=progress)}
        train = load_split(root, "train")
    objects = Objects.of(train)
    found |= {"classes": len(train.class_names), "boxes": len(objects.boxes)}
    names = {name: name for name in ("train", "val", *(["test"] if "test" in splits else []))}
    settings = fixed_settings(out.stem, root, out, names, runtime, target)
    if any(split.repaired() for split in splits.values()):
        settings["data.repair"] = Advice(True, "boxes that cannot be used are cut or left out")
    if "test" not in splits:
        doubts.append(NO_TEST)
    settings |= learned(train) | advise(objects, device_kind(runtime))
    return AdvisedRecipe(out, out.stem, settings, found, tuple(doubts))


def _training_split(root: Path) -> str:
    """Return the split to train on: ``train``, or the only one, which exporters name variously.

    Raises:
        AdaptError: If there is none.
    """
    check_folder(root)
    known = split_names(root)
    if has_split(root, "train"):
        return "train"
    if len(known) == 1:
        return known[0]
    raise AdaptError(
        f"{root} has no split `train` (it has {', '.join(known) or 'none'}); name the annotations "
        "of the training images annotations/train.json, train/_annotations.coco.json or "
        "ImageSets/Main/train.txt, or add a data.yaml"
    )


def _has(root: Path, name: str) -> bool:
    return has_split(root, name) or (name == "val" and has_split(root, "valid"))
