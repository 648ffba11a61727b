"""Which splits does a folder hold in COCO's format, and what does a file of it list?"""

from pathlib import Path

from adapt.artifacts import read_json
from adapt.data.formats.place import Lists, Place, Sources
from adapt.errors import AdaptError


def find(root: Path) -> dict[str, Place]:
    """Return the splits of a folder by name.

    Three layouts are known: COCO's own (``annotations/instances_train2017.json`` and
    ``train2017/``), ``annotations/train.json`` with ``images/``, and Roboflow's export
    (``train/_annotations.coco.json`` with the images beside it).
    """
    splits = {}
    folder = root / "annotations"
    # COCO's folder also holds captions and key points: every file counts only where none is named
    # instances_*.
    for file in sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json")):
        name = file.stem.removeprefix("instances_")
        places = (root / name, root / "images" / name, root / "images")
        images = next((place for place in places if place.is_dir()), places[0])
        splits[name] = Place(file, images, root=root)
    for file in sorted(root.glob("*/_annotations.coco.json")):
        splits[file.parent.name] = Place(file, file.parent, root=root)
    return splits


def sources(place: Place) -> Sources:
    """Return the annotation file."""
    return [place.annotations], []


def read(place: Place) -> Lists:
    """Return what a file lists; what is no entry becomes an empty one.

    Raises:
        AdaptError: If the file is none of COCO's format, or has no images or categories.
    """
    file = place.annotations
    content = read_json(file, "annotation file")
    needed = ("images", "annotations", "categories")
    entries = content if isinstance(content, dict) else {}
    missing = [name for name in needed if not isinstance(entries.get(name), list)]
    if missing:
        raise AdaptError(
            f"{file} has no list of {' or '.join(missing)}; export the data set in COCO format, "
            "or choose another split"
        )
    for name in ("images", "categories"):
        if not entries[name]:
            raise AdaptError(f"{file} holds no {name}; choose another split or export it again")
    if not place.images.is_dir():
        raise AdaptError(f"image folder {place.images} of {file} does not exist; check the path")
    images, annotations, categories = (
        [one if isinstance(one, dict) else {} for one in entries[name]] for name in needed
    )
    return Lists(images, annotations, categories)
