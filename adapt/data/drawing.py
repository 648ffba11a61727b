"""How are boxes drawn into images, and images laid out on a sheet?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from adapt.data.augmentation import NONE, Augmentation, Draw, drawn
from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset, Sample
from adapt.data.images import InputSize

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "orange", "white")
COLUMNS = 4
LETTERS = 11  # pixels, at least, that captions are high
TILE = InputSize(288, 384)  # of an image as it is


def draw_boxes(
    pixels: Tensor, boxes: Tensor, labels: Sequence[int], captions: Sequence[str]
) -> Tensor:
    """Return an image with boxes in the colours of their classes.

    Args:
        pixels: ``uint8[3, H, W]``.
        boxes: ``float[N, 4]``, corners in pixels.
        labels: Class of every box.
        captions: What stands at every box.
    """
    if not len(labels):
        return pixels
    side = min(pixels.shape[-2:])
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    drawn: Tensor = draw_bounding_boxes(
        pixels,
        boxes,
        list(captions),
        colours,
        width=max(1, round(side / 200)),
        font=str(_font()),
        font_size=max(LETTERS, round(side / 30)),
    )
    return drawn


def _font() -> Path:
    """Return a font that can be scaled; without one letters stay ten pixels high."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"


def contact_sheet(
    split: CocoSplit,
    number: int,
    seed: int = 0,
    size: InputSize | None = None,
    *,
    flip: bool = True,
    augmentation: Augmentation = NONE,
) -> Tensor:
    """Return random images of a split with their boxes, side by side, as ``uint8[3, H, W]``.

    Args:
        split: The split.
        number: Images at most.
        seed: Which ones, and which of them are mirrored.
        size: A detector's input: images are shown as it trains on them. As they are if None.
        flip: Whether it mirrors half of them.
        augmentation: How it changes them otherwise; each is shown before and after.
    """
    chance = np.random.default_rng(seed)
    chosen = chance.permutation(len(split))[:number].tolist()
    images = DetectionDataset(split, size or TILE, augmentation=augmentation)
    mirrored = [size is not None and flip and bool(chance.random() < 0.5) for _ in chosen]
    tiles = []
    for draw in drawn(chosen, mirrored, augmentation, len(split), chance):
        shown = [Draw(draw.position), draw] if augmentation.active else [draw]
        tiles += [_tile(images[one], split.class_names) for one in shown]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    padded = [_padded(tile, height, width) for tile in tiles]
    sheet: Tensor = make_grid(padded, nrow=min(COLUMNS, len(padded)), padding=4, pad_value=255)
    return sheet


def _tile(sample: Sample, class_names: Sequence[str]) -> Tensor:
    pixels, target = sample
    labels = target["labels"].tolist()
    return draw_boxes(pixels, target["boxes"], labels, [class_names[label] for label in labels])


def _padded(tile: Tensor, height: int, width: int) -> Tensor:
    below, right = height - tile.shape[1], width - tile.shape[2]
    padded: Tensor = torch.nn.functional.pad(tile, (0, right, 0, below))
    return padded
