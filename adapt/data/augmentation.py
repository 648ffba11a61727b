"""How are training images changed, so that a detector sees more than there is?

By torchvision's transforms. Everything random comes from the seed of the draw, so that a sample is
the same in any process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import box_area, clip_boxes_to_image, masks_to_boxes
from torchvision.transforms import v2

from adapt.data.images import PADDING, InputSize
from adapt.errors import FORBID_UNKNOWN, AdaptError

PROBABILITIES = ("zoom_out", "crop", "photometric", "mosaic")
ZOOM_OUT = (1.0, 1.5)  # sides of the padded image, in sides of the image
CROP = 0.5  # least side of a crop, in sides of the image
# Shares of brightness, contrast, saturation and hue. Channels are not exchanged: dyes, lamps and
# signs are told by their colour.
JITTER = (0.2, 0.3, 0.3, 0.02)
VISIBLE = 0.25  # share of a box that must be left of it in a mosaic


@dataclass(frozen=True)
class Augmentation:
    """With which probability each change is made to a training image; 0 never.

    Attributes:
        zoom_out: Padding makes the image up to 1.5 times as high and wide.
        crop: A crop keeps at least half of each side, and overlaps some box by a random share.
        photometric: Brightness, contrast, saturation and hue change a little.
        mosaic: A window onto four images, laid out two by two, takes the image's place.
        short_sides: Pixels of the short side, one of which every image is scaled to; none for the
            input's own. Of ``shortest-edge``: RetinaNet is often trained with 640 to 800.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    zoom_out: float = 0.0
    crop: float = 0.0
    photometric: float = 0.0
    mosaic: float = 0.0
    short_sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, got {value}")
        if any(side < 32 for side in self.short_sides):
            raise ValueError(f"short_sides are at least 32 pixels, got {list(self.short_sides)}")

    def check(self, size: InputSize) -> None:
        """Check that images of an input can be changed so.

        Raises:
            ValueError: If not.
        """
        if self.mosaic and size.resize != "letterbox":
            raise ValueError(
                f"data.augment.mosaic needs an input that is a letterbox, got {size.resize!r}; set "
                "it to 0, or input.resize to 'letterbox'"
            )
        if self.short_sides and size.resize == "letterbox":
            raise ValueError(
                "data.augment.short_sides needs an input of another size for every image, got a "
                "letterbox; leave it out, or set input.resize to 'shortest-edge'"
            )

    @classmethod
    def parse(cls, changes: Sequence[str], option: str) -> "Augmentation":
        """Read ``crop=0.5`` and the like; without a number, the change is always made.

        Raises:
            AdaptError: If a name is unknown, or the number no probability.
        """
        known = PROBABILITIES
        found = {}
        for text in changes:
            name, _, number = text.partition("=")
            try:
                found[name] = float(number or 1)
            except ValueError:
                found[name] = math.nan
            if name not in known or not 0 <= found[name] <= 1:
                raise AdaptError(
                    f"{option} must be one of {', '.join(known)} with a probability, such as "
                    f"crop=0.5, got {text!r}"
                )
        zoom_out, crop, photometric, mosaic = (found.get(name, 0.0) for name in known)
        return cls(zoom_out, crop, photometric, mosaic)

    @property
    def active(self) -> bool:
        """Whether any change may be made."""
        return any(getattr(self, name) for name in (*PROBABILITIES, "short_sides"))

    def shown_size(self, size: InputSize) -> InputSize:
        """Return the size that an image is fitted into, with torch's random numbers."""
        if not self.short_sides:
            return size
        chosen = int(torch.randint(0, len(self.short_sides), ()))
        return replace(size, height=self.short_sides[chosen])


CROWD = -1
NONE = Augmentation()
Changed = TypeVar("Changed")


class Draw(NamedTuple):
    """Which image is shown, and how.

    Attributes:
        position: Place of the image in its split.
        mirrored: Whether it is mirrored.
        seed: Of what else is random; None for the image as it is.
        others: Places of three more images of a mosaic; empty for none.
    """

    position: int
    mirrored: bool = False
    seed: int | None = None
    others: tuple[int, ...] = ()


class Labelled(NamedTuple):
    """An image with its boxes.

    Attributes:
        pixels: ``uint8[3, H, W]``.
        boxes: ``float32[N, 4]``, xyxy in its pixels.
        labels: ``int64[N]``; :data:`CROWD` of a box around a group.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor


def seeded(seed: int, change: Callable[[], Changed]) -> Changed:
    """Return what a change returns that draws torch's random numbers, from a seed of its own."""
    before = torch.get_rng_state()
    # Not torch.manual_seed: it would seed a GPU too, whose random numbers are the training's.
    torch.default_generator.manual_seed(seed)
    try:
        return change()
    finally:
        torch.set_rng_state(before)


def moved(image: Labelled, augmentation: Augmentation) -> Labelled:
    """Zoom out of an image and crop it, with torch's random numbers.

    Args:
        image: An image of any size.
        augmentation: With which probabilities.
    """
    single = image.labels != CROWD
    fill: Any = {tv_tensors.Image: PADDING, tv_tensors.Mask: 0}
    steps: list[nn.Module] = [
        v2.RandomZoomOut(fill=fill, side_range=ZOOM_OUT, p=augmentation.zoom_out)
    ]
    if single.any():  # a crop is drawn by the boxes that it overlaps
        crop = v2.RandomIoUCrop(min_scale=CROP, max_scale=1.0)
        steps.append(v2.RandomApply([crop], p=augmentation.crop))
    size: Any = image.pixels.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(image.boxes[single], format="XYXY", canvas_size=size)
    crowds = tv_tensors.Mask(_as_masks(image.boxes[~single], *size))
    content = {"image": tv_tensors.Image(image.pixels), "boxes": boxes, "crowds": crowds}
    changed = v2.Compose(steps)(content)
    found = changed["boxes"].as_subclass(Tensor)
    # Boxes whose middle a crop leaves out have no size. Of a crowd, whatever is left counts.
    kept = (found[:, 2:] - found[:, :2] >= 1).all(dim=1)
    masks = changed["crowds"].as_subclass(Tensor)
    left = masks_to_boxes(masks[masks.flatten(1).bool().any(dim=1)])
    left[:, 2:] += 1  # edges, not pixels
    return Labelled(
        changed["image"].as_subclass(Tensor),
        torch.cat((found[kept], left)),
        torch.cat((image.labels[single][kept], torch.full((len(left),), CROWD))),
    )


def _as_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return ``uint8[N, height, width]``, 1 inside of each box."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def recoloured(pixels: Tensor, probability: float) -> Tensor:
    """Change the colours of ``uint8[3, H, W]`` with a probability, with torch's random numbers."""
    change = v2.RandomApply([v2.ColorJitter(*JITTER)], p=probability)
    recoloured: Tensor = change(tv_tensors.Image(pixels)).as_subclass(Tensor)
    return recoloured


def mosaic(images: Sequence[Labelled], size: InputSize) -> Labelled:
    """Lay out four images of the input's size two by two, and return a window of that size.

    Objects keep their size. A box stays if a quarter of it is in the window.

    Args:
        images: The images.
        size: The input.
    """
    height, width = size.height, size.width
    sheet = torch.full((3, 2 * height, 2 * width), PADDING, dtype=torch.uint8)
    boxes, labels = [], []
    for number, image in enumerate(images):
        top, left = height * (number // 2), width * (number % 2)
        sheet[:, top : top + height, left : left + width] = image.pixels
        boxes.append(image.boxes + torch.tensor([left, top, left, top]))
        labels.append(image.labels)
    top, left = (int(torch.randint(0, side + 1, ())) for side in (height, width))
    whole = torch.cat(boxes) - torch.tensor([left, top, left, top])
    seen = clip_boxes_to_image(whole, (height, width))
    labelled, area = torch.cat(labels), box_area(seen)
    # Nothing is learned on what is left of a crowd, however little it is.
    kept = (area > 0) & ((labelled == CROWD) | (area >= VISIBLE * box_area(whole)))
    window = sheet[:, top : top + height, left : left + width]
    return Labelled(window.contiguous(), seen[kept], labelled[kept])


def drawn(
    positions: Sequence[int],
    mirrored: Sequence[bool],
    augmentation: Augmentation,
    num_images: int,
    chance: np.random.Generator,
) -> list[Draw]:
    """Return how images are shown in an epoch.

    Args:
        positions: The images, in their order.
        mirrored: Which of them are mirrored.
        augmentation: How they are changed.
        num_images: Images of the split.
        chance: Where random numbers come from.
    """
    if not augmentation.active:
        return [Draw(*pair) for pair in zip(positions, mirrored, strict=True)]
    count = len(positions)
    seeds = chance.integers(0, 2**31, count).tolist()
    together = (chance.random(count) < augmentation.mosaic).tolist()
    others = chance.integers(0, num_images, (count, 3)).tolist()
    return [
        Draw(positions[n], mirrored[n], seeds[n], tuple(others[n]) if together[n] else ())
        for n in range(count)
    ]
