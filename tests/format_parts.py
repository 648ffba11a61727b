"""A data set of COCO's format written as Pascal VOC and as YOLO."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from adapt.data.coco import CocoSplit, load_split


def voc_text(split: CocoSplit, number: int) -> str:
    """The XML of an image: pixels from 1, the last one belongs to the box; fractions from 0."""
    image, boxes = split.images[number], split.boxes[number]
    first = int(all((of.xyxy % 1 == 0).all() for of in split.boxes))
    objects = "".join(
        f"<object><name>{split.class_names[label]}</name><difficult>{int(crowd)}</difficult>"
        f"<bndbox><xmin>{x1 + first:.17g}</xmin><ymin>{y1 + first:.17g}</ymin>"
        f"<xmax>{x2:.17g}</xmax><ymax>{y2:.17g}</ymax></bndbox></object>"
        for (x1, y1, x2, y2), label, crowd in zip(
            boxes.xyxy.tolist(), boxes.labels, boxes.crowd, strict=True
        )
    )
    return (
        f"<annotation><filename>{image.path.name}</filename><size><width>{image.width}</width>"
        f"<height>{image.height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def yolo_text(split: CocoSplit, number: int) -> str:
    """The lines of an image: class, centre and size as shares."""
    image, boxes = split.images[number], split.boxes[number]
    return "".join(
        f"{label} {(x1 + x2) / 2 / image.width:.17g} {(y1 + y2) / 2 / image.height:.17g} "
        f"{(x2 - x1) / image.width:.17g} {(y2 - y1) / image.height:.17g}\n"
        for (x1, y1, x2, y2), label in zip(boxes.xyxy.tolist(), boxes.labels, strict=True)
    )


def as_voc(root: Path, out: Path, splits: Sequence[str]) -> Path:
    """Write splits as VOC's own layout."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    for name in splits:
        split = load_split(root, name)
        stems = []
        for number, image in enumerate(split.images):
            shutil.copy(image.path, out / "JPEGImages")
            file = out / "Annotations" / f"{image.path.stem}.xml"
            file.write_text(voc_text(split, number))
            stems.append(image.path.stem)
        (out / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return out


def as_yolo(root: Path, out: Path, splits: Sequence[str]) -> Path:
    """Write splits as Ultralytics lays them out."""
    lines = []
    for name in splits:
        split = load_split(root, name)
        images, labels = out / "images" / name, out / "labels" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number, image in enumerate(split.images):
            shutil.copy(image.path, images)
            (labels / f"{image.path.stem}.txt").write_text(yolo_text(split, number))
        lines.append(f"{name}: images/{name}\n")
    names = load_split(root, splits[0]).class_names
    listed = "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
    (out / "data.yaml").write_text(f"path: .\n{''.join(lines)}names:\n{listed}")
    return out
