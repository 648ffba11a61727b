"""Which generated data set does the demo train on?"""

import colorsys
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adapt.artifacts import header, make_folder, read_json, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, silent

CLASSES = ("disc", "square", "triangle")
SPLITS = ("train", "val", "test")
HUES = (0.58, 0.08, 0.33)  # blue, orange, green: colour hints at the class, shape decides it
HUE_SPREAD = 0.07
SIZES = (18.0, 120.0)  # pixels across an object
CROWDED_SIZES = (12.0, 40.0)
EMPTY, CROWDED = 0.05, 0.15  # shares of the images
MAX_OVERLAP = 0.3  # intersection of two boxes over the smaller one, so their IoU is less
OUTLINE = 0.82  # width of the fill over the width of the shape
FINE = 4  # drawing happens at this scale, for smooth edges and sub-pixel boxes
MARKER = "synthetic.json"  # states the parameters of a complete set
REVISION = 1  # counted up when the same parameters draw other images

Colour = NDArray[np.float64]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """One object: its label, and its outline as a polygon around (0, 0) in pixels."""

    label: int
    polygon: NDArray[np.float64]  # [points, 2]

    def box_at(self, x: float, y: float) -> Box:
        """Return the corners of the shape's box when its centre is at (x, y)."""
        (left, top), (right, bottom) = self.polygon.min(axis=0), self.polygon.max(axis=0)
        return x + left, y + top, x + right, y + bottom


def generate(
    root: Path,
    *,
    seed: int = 0,
    train: int = 240,
    val: int = 60,
    test: int = 0,
    size: tuple[int, int] = (256, 320),
    progress: Progress = silent,
) -> Path:
    """Draw discs, squares and triangles on textures, as a COCO data set in ``root``.

    The same parameters give the same bytes. A folder that already holds them is left as it is.

    Args:
        root: Folder to create; it appears when all is written.
        seed: Seed of everything that is random.
        train: Number of images of the split ``train``.
        val: Number of images of the split ``val``.
        test: Number of images of the split ``test``; there is none without.
        size: Height and width of the images in pixels, at least 128.
        progress: Called after every image.

    Returns:
        ``root``, for :func:`adapt.data.coco.load_split`.

    Raises:
        AdaptError: If ``root`` holds anything else, or a parameter is too small.
    """
    if train < 1 or val < 1 or min(size) < 128:
        raise AdaptError(
            f"the synthetic set needs images in both splits and sides of 128 pixels, got {train} "
            f"train and {val} val images of {size[0]}x{size[1]}; ask for more"
        )
    parameters = {"seed": seed, "train": train, "val": val, "size": list(size), "draw": REVISION}
    if test:
        parameters["test"] = test
    if _is_complete(root, parameters):
        return root
    make_folder(root.parent)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
        complete = Path(folder) / root.name
        _write(complete, parameters, progress)
        if root.is_dir():
            root.rmdir()  # empty, or _is_complete had raised
        shutil.move(complete, root)
    return root


def _is_complete(root: Path, parameters: dict[str, Any]) -> bool:
    """Return whether the folder holds this set, False if it is empty or missing.

    Raises:
        AdaptError: If it holds anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    written = read_json(marker, "marker") if marker.is_file() else {}
    images = sum(parameters.get(split, 0) for split in SPLITS)
    same = isinstance(written, dict) and written.get("parameters") == parameters
    if same and len(list(root.glob("images/*.jpg"))) == images:
        return True
    raise AdaptError(
        f"{root} exists and does not hold the synthetic set with {json.dumps(parameters)}; "
        "remove it or choose another folder"
    )


def _write(root: Path, parameters: dict[str, Any], progress: Progress) -> None:
    (root / "images").mkdir(parents=True)
    done, total = 0, sum(parameters.get(split, 0) for split in SPLITS)
    for number, split in enumerate(split for split in SPLITS if split in parameters):
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
        }
        for index in range(parameters[split]):
            chance = np.random.default_rng((parameters["seed"], number, index))
            _add_image(content, root / "images" / f"{split}_{index:05d}.jpg", parameters, chance)
            done += 1
            progress(done, total)
        write_json(root / "annotations" / f"{split}.json", content)
    write_json(root / MARKER, header("synthetic-data", parameters=parameters))


def _add_image(
    content: dict[str, Any], path: Path, parameters: dict[str, Any], chance: Generator
) -> None:
    height, width = parameters["size"]
    image_id = len(content["images"]) + 1
    pixels, objects = draw_image(height, width, chance)
    Image.fromarray(pixels).save(path, quality=92)
    content["images"].append(
        {"id": image_id, "file_name": path.name, "height": height, "width": width}
    )
    for label, (x1, y1, x2, y2), area in objects:
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": 0,
            }
        )


def draw_image(
    height: int, width: int, chance: Generator
) -> tuple[NDArray[np.uint8], list[tuple[int, Box, float]]]:
    """Draw one image.

    Returns:
        ``uint8[H, W, 3]``, and of every object its label, its box (xyxy) and its area in pixels.
    """
    canvas = _texture(height, width, chance)
    objects = []
    for shape, x, y in _place(_shapes(chance), height, width, chance):
        box, area = _paint(canvas, shape, x, y, chance)
        objects.append((shape.label, box, area))
    return canvas.round().clip(0, 255).astype(np.uint8), objects


def _texture(height: int, width: int, chance: Generator) -> NDArray[np.float64]:
    """Return smooth noise of several scales on a gradient, ``float64[H, W, 3]``."""
    canvas = np.empty((height, width, 3))
    canvas[:] = _colour(chance.random(), chance.uniform(0.0, 0.25), chance.uniform(0.3, 0.8))
    slope = chance.uniform(-25, 25, size=(2, 1)) + chance.uniform(-10, 10, size=(2, 3))
    rows, columns = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    canvas += rows[:, None, None] * slope[0] + columns[None, :, None] * slope[1]
    strength = chance.uniform(4, 18)
    for cells in (3, 6, 12, 24, 48):
        grid = chance.normal(size=(cells, cells)).astype(np.float32)
        noise = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        tint = chance.uniform(0.8, 1.0, size=3)
        canvas += np.asarray(noise)[:, :, None] * tint * strength
        strength *= 0.7
    return canvas


def _colour(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) * 255


def _shapes(chance: Generator) -> list[Shape]:
    """Choose the objects of one image, largest first, so that none hides another."""
    kind = chance.random()
    if kind < EMPTY:
        return []
    crowded = kind < EMPTY + CROWDED
    number = int(chance.integers(10, 19) if crowded else chance.integers(1, 7))
    low, high = CROWDED_SIZES if crowded else SIZES
    sizes = np.exp(chance.uniform(math.log(low), math.log(high), size=number))
    return [_shape(float(across), chance) for across in sorted(sizes, reverse=True)]


def _shape(across: float, chance: Generator) -> Shape:
    label = int(chance.integers(len(CLASSES)))
    corners = {"disc": 48, "square": 4, "triangle": 3}[CLASSES[label]]
    # A square starts on its side and a triangle on its base; both are turned by up to 15 degrees.
    start = (
        -math.pi / 2 + (math.pi / 4 if corners == 4 else 0) + chance.uniform(-1, 1) * math.pi / 12
    )
    angles = start + np.arange(corners) * 2 * math.pi / corners
    polygon = np.column_stack((np.cos(angles), np.sin(angles))) * chance.uniform(0.8, 1.0, size=2)
    return Shape(label, polygon * across / np.ptp(polygon, axis=0).max())


def _place(
    shapes: Sequence[Shape], height: int, width: int, chance: Generator
) -> list[tuple[Shape, float, float]]:
    """Give every shape a centre; one that overlaps too much in 50 tries is left out."""
    placed: list[tuple[Shape, float, float]] = []
    boxes: list[Box] = []
    for shape in shapes:
        left, top, right, bottom = shape.box_at(0, 0)
        for _ in range(50):
            x = float(chance.uniform(1 - left, width - 1 - right))
            y = float(chance.uniform(1 - top, height - 1 - bottom))
            box = shape.box_at(x, y)
            if all(_overlap(box, other) <= MAX_OVERLAP for other in boxes):
                placed.append((shape, x, y))
                boxes.append(box)
                break
    return placed


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes over the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def _paint(
    canvas: NDArray[np.float64], shape: Shape, x: float, y: float, chance: Generator
) -> tuple[Box, float]:
    """Blend a shape into the canvas; return the box and the area of what was drawn."""
    box = shape.box_at(x, y)
    left, top = math.floor(box[0]), math.floor(box[1])
    size = math.ceil(box[2]) + 1 - left, math.ceil(box[3]) + 1 - top
    centre = np.array((x - left, y - top))
    outer = _mask(shape.polygon + centre, size)
    inner = _mask(shape.polygon * OUTLINE + centre, size)
    hue = HUES[shape.label] + chance.normal(0, HUE_SPREAD)
    fill = _colour(hue, chance.uniform(0.55, 1.0), chance.uniform(0.55, 1.0))
    edge = fill * chance.uniform(0.2, 0.5)
    patch = canvas[top : top + size[1], left : left + size[0]]
    whole, filled = (
        _coverage(mask)[: len(patch), : patch.shape[1], None] for mask in (outer, inner)
    )
    patch[:] = patch * (1 - whole) + edge * (whole - filled) + fill * filled
    return _extent(outer, left, top)


def _mask(polygon: NDArray[np.float64], size: tuple[int, int]) -> Image.Image:
    """Return the filled polygon at ``FINE`` times the size (width, height)."""
    mask = Image.new("L", (size[0] * FINE, size[1] * FINE))
    ImageDraw.Draw(mask).polygon([(px * FINE, py * FINE) for px, py in polygon.tolist()], fill=255)
    return mask


def _coverage(mask: Image.Image) -> NDArray[np.float64]:
    return np.asarray(mask.reduce(FINE), dtype=np.float64) / 255


def _extent(mask: Image.Image, left: int, top: int) -> tuple[Box, float]:
    """Return box and area, in pixels of the image, of a fine mask that starts at (left, top)."""
    extent = mask.getbbox()
    assert extent is not None
    x1, y1, x2, y2 = (value / FINE for value in extent)
    area = mask.histogram()[255] / FINE**2
    return (left + x1, top + y1, left + x2, top + y2), area
