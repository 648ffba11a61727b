"""Which settings of a recipe fit the images, the boxes and the machine, and why?"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adapt.data.coco import CocoSplit
from adapt.data.dataset import steps_per_epoch
from adapt.data.images import InputSize
from adapt.detector.objects import Floats, Objects, best_anchor

STRIDE = 8  # of P3: objects of fewer than two cells are hardly found
SMALLEST = 2 * STRIDE  # pixels that all but the smallest tenth of a class should have
TENTH = 0.1
CLASSES = 0.75  # share of the classes that should have them: AP is their mean
PIXELS = {"cpu": (160 * 160, 320 * 416), "gpu": (320 * 320, 800 * 1088)}  # of an input
LONG_SIDES = range(160, 1345, 32)
RACE_STEPS = 100  # of the first round of a race: fewer say little
SURVIVORS = {"cpu": 2, "gpu": 4}  # four finalists, two, one; twelve, three, one
LARGER = (1.0, 1.15, 1.3, 1.4)  # inputs that are searched too, as sides
RARE = 0.01  # share of the images below which a class is shown more often
STEPS = 1500  # of a fine-tuning of a few hundred images
EPOCHS = (12, 60)  # at least, at most
BATCH = {"cpu": 4, "gpu": 16}
LR = {"cpu": 1e-3, "gpu": 2e-3}  # of AdamW at these batches
CHANGES = {  # of training images, worth 2 AP on blood cells after 1,530 steps (docs/studies.md)
    "zoom_out": (0.3, "with this probability objects are shown smaller,"),
    "crop": (0.5, "larger and cut,"),
    "photometric": (0.5, "in other colours"),
}
HEADS = {"cpu": (64, 1), "gpu": (128, 2)}  # pyramid width, head depth
# Of a second stage on a CPU (docs/results.md). For TensorRT there is none.
CANDIDATES, BOX_WIDTH, POOLED = 300, 128, (5, 1)
PROPOSALS = (100, 300)  # at least, at most
EACH = 4  # proposals per object of a crowded image, one of twenty; with half of them AP falls by 2
# Of one stage. Two have one layer before proposals: without it, which starts from the source's,
# short races ended 2 to 8 AP lower at each of eight inputs and budgets (docs/results.md).
DEPTHS = {"cpu": [], "gpu": [0, 1, 2]}
PYRAMIDS = {"cpu": [48], "gpu": [128]}  # of the networks to choose from


@dataclass(frozen=True)
class Advice:
    """A setting of a recipe.

    Attributes:
        value: The setting.
        reason: Why, as a comment in the recipe.
    """

    value: object
    reason: str


def advise(objects: Objects, on: str) -> dict[str, Advice]:
    """Return settings by the names of their fields.

    Args:
        objects: Images and boxes of the training split.
        on: ``cpu`` or ``gpu``, where the detector runs.
    """
    size, why_size = input_size(objects, on)
    boxes = objects.fitted(size)
    anchor, recall = best_anchor(boxes)
    epochs, batch = training_epochs(len(objects.images), BATCH[on]), BATCH[on]
    width, depth = HEADS[on]
    larger = _larger(size)
    return {
        "input.height": Advice(size.height, why_size),
        "input.width": Advice(size.width, ""),
        "detector.fpn_width": Advice(width, f"enough for a detector on a {on.upper()}"),
        "detector.head_depth": Advice(depth, "deeper heads cost milliseconds and learn slowly"),
        "detector.anchor_size": Advice(
            anchor,
            f"anchors of this size and its doubles overlap {recall:.0%} of the boxes by at least "
            f"half; boxes are {_range(objects.sides(size))} pixels across in the input",
        ),
        **(_two_stages(objects) if on == "cpu" else {}),
        **({"joint.head_depth": Advice(DEPTHS[on], "heads to choose from")} if DEPTHS[on] else {}),
        **_narrower(width, PYRAMIDS[on]),
        "joint.input": Advice(
            [[one.height, one.width] for one in larger],
            "inputs to choose from: a larger one with a smaller backbone often wins",
        ),
        "joint.epochs": Advice(
            math.ceil(RACE_STEPS / steps_per_epoch(len(objects.images), batch)),
            f"of the first round of the race: about {RACE_STEPS} steps",
        ),
        "joint.survivors": Advice(SURVIVORS[on], "one in so many trains on in the next round"),
        **{f"data.augment.{name}": Advice(*setting) for name, setting in CHANGES.items()},
        "finetune.epochs": Advice(
            epochs,
            f"{epochs * steps_per_epoch(len(objects.images), batch)} steps of {batch} of "
            f"{len(objects.images)} images",
        ),
        "finetune.shared_epochs": Advice(max(1, epochs // 4), "of the source that is scored"),
        "finetune.batch_size": Advice(batch, f"images per step, for a {on.upper()}"),
        "finetune.lr": Advice(LR[on], "of AdamW at this batch"),
        "finetune.val_epochs": Advice(max(1, epochs // 6), "epochs from one AP on val to the next"),
    }


def learned(train: CocoSplit) -> dict[str, Advice]:
    """Return settings for crowds and rare classes, where there are some.

    Args:
        train: Training images.
    """
    settings = {}
    if any(boxes.crowd.any() for boxes in train.boxes):
        why = "nothing is learned on boxes around groups"
        settings["data.ignore_crowds"] = Advice(True, why)
    shown = Counter(label for boxes in train.boxes for label in set(boxes.labels[~boxes.crowd]))
    rare = [label for label, count in shown.items() if count < RARE * len(train)]
    if rare:
        classes = "class is" if len(rare) == 1 else "classes are"
        settings["data.rare"] = Advice(
            RARE,
            f"{len(rare)} {classes} on fewer than {RARE:.0%} of the images, which are shown more "
            "often",
        )
    return settings


def input_size(objects: Objects, on: str) -> tuple[InputSize, str]:
    """Return the smallest letterbox in which nearly all objects are large enough, and why.

    Args:
        objects: Images and boxes.
        on: ``cpu`` or ``gpu``.
    """
    least, most = PIXELS[on]
    height, width = (float(np.median(side)) for side in objects.images.T)
    shaped = [size for size in letterboxes(height, width) if _pixels(size) <= most]
    shaped = [size for size in shaped if _pixels(size) >= least] or shaped[-1:]
    reached = {size: _reached(objects, size) for size in shaped}
    enough = [size for size in shaped if reached[size] >= SMALLEST]
    native = [size for size in shaped if size.scale(int(height), int(width)) <= 1]
    size = enough[0] if enough else (native or shaped[:1])[-1]
    limit = "" if enough else f", the largest that images and a {on.upper()} allow"
    return size, (
        f"images are {height:.0f}x{width:.0f} (median); of {CLASSES:.0%} of the classes, nine of "
        f"ten objects are {reached[size]:.0f} pixels across or more in this input{limit}"
    )


def _reached(objects: Objects, size: InputSize) -> float:
    smallest_first = np.sort(objects.small_sides(size, TENTH))
    return float(smallest_first[int((1 - CLASSES) * len(smallest_first))])


def letterboxes(height: float, width: float) -> list[InputSize]:
    """Return inputs of about the shape of an image, the smallest first; they waste little.

    Of letterboxes with the same long side, that with the least padding per pixel is taken.

    Args:
        height: Of the image.
        width: Of the image.
    """
    found = []
    for long in LONG_SIDES:
        short = long * min(height, width) / max(height, width)
        around = {max(32, int(short // 32) * 32), max(32, -(-int(short) // 32) * 32)}
        sizes = [InputSize(*((side, long) if width >= height else (long, side))) for side in around]
        found.append(min(sizes, key=lambda size: _padding(size, height, width)))
    return list(dict.fromkeys(found))


def training_epochs(images: int, batch: int) -> int:
    """Return epochs that take about :data:`STEPS` steps, for few images not too many."""
    least, most = EPOCHS
    return int(min(max(round(STEPS * batch / images), least), most))


def _padding(size: InputSize, height: float, width: float) -> float:
    scale = min(size.height / height, size.width / width)
    return 1 - scale * scale * height * width / _pixels(size)


def _pixels(size: InputSize) -> int:
    return size.height * size.width


def _larger(size: InputSize) -> list[InputSize]:
    """Return the input and larger ones of its shape."""
    found = []
    for factor in LARGER:
        height, width = (32 * round(side * factor / 32) for side in (size.height, size.width))
        found.append(InputSize(height, width))
    return list(dict.fromkeys(found))


def _narrower(width: int, widths: list[int]) -> dict[str, Advice]:
    """Return the pyramids to choose from, if they are not all the source's."""
    if widths == [width]:
        return {}
    why = f"pyramids to choose from: the milliseconds of {width} bring more in a larger input"
    return {"joint.fpn_width": Advice(widths, why)}


def _two_stages(objects: Objects) -> dict[str, Advice]:
    """Return the settings of two stages that together take a CPU about as long as RetinaNet."""
    crowded = np.quantile(np.bincount(objects.of_image, minlength=len(objects.images)), 0.95)
    least, most = PROPOSALS
    proposals = int(np.clip(50 * math.ceil(EACH * crowded / 50), least, most))
    why = "boxes of a second stage fit better, in the time of retinanet; that one is for TensorRT"
    enough = f"for the second stage; a crowded image has {crowded:.0f} objects"
    return {
        "detector.head": Advice("faster-rcnn", why),
        "detector.candidates": Advice(CANDIDATES, "of each level, for proposals"),
        "detector.proposals": Advice(proposals, enough),
        "detector.box_width": Advice(BOX_WIDTH, "of its layers"),
        "detector.pooled_side": Advice(POOLED[0], "cells per side that it pools of a box,"),
        "detector.pooled_samples": Advice(POOLED[1], "samples per side of a cell"),
    }


def _range(sides: Floats) -> str:
    low, middle, high = np.quantile(sides, (0.05, 0.5, 0.95))
    return f"{low:.0f} to {high:.0f} (median {middle:.0f})"


def grouped(advice: Mapping[str, Advice]) -> Iterator[tuple[str, dict[str, Advice]]]:
    """Yield the sections of a recipe and the settings of each."""
    for section in dict.fromkeys(name.partition(".")[0] for name in advice):
        yield (
            section,
            {
                name.partition(".")[2]: one
                for name, one in advice.items()
                if name.startswith(f"{section}.")
            },
        )
