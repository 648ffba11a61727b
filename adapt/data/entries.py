"""What does each entry of a COCO annotation file say, and what is wrong with it?"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar, cast

from adapt.data.annotated_image import CocoImage
from adapt.data.formats.place import Lists, Place
from adapt.data.inside import FIX, leaves
from adapt.data.paths import image_path
from adapt.data.repair import Box, Problem, UnusableError, usable_box

Id = int | str  # as files give it
Value = TypeVar("Value")


class Annotation(NamedTuple):
    """One annotation: a box that can be used, after repair if it has a problem.

    Attributes:
        image: Its image.
        category: Id of its category.
        box: (x, y, width, height) as annotated.
        corners: (x1, y1, x2, y2) in pixels of the image.
        crowd: Whether it is a box around a group.
        area: Square pixels of the object.
        problem: What is wrong with it.
    """

    image: CocoImage
    category: Id
    box: Box
    corners: Box
    crowd: bool
    area: float
    problem: Problem | None


class Reader:
    """Reads the entries of one file, and collects what is wrong with them.

    Args:
        place: Where it lies.

    Attributes:
        problems: What is wrong, in the order of reading.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.file = place, place.annotations
        self.problems: list[Problem] = []
        self._unusable: dict[str, set[Id]] = {}  # ids of images and categories

    def images(self, entries: Iterable[dict[str, Any]]) -> dict[Id, CocoImage]:
        """Return the usable images by their ids, in the order of the file."""
        images = self._by_id(entries, "an image", self._image)
        fit = all(isinstance(number, int) and abs(number) < 2**63 for number in images)
        if fit:
            return images
        # Tensors hold integers of 64 bits: other ids are counted anew.
        return {
            key: replace(image, id=number)
            for number, (key, image) in enumerate(images.items(), start=1)
        }

    def _image(self, number: Id, entry: dict[str, Any]) -> CocoImage:
        what = f"image {number} in {self.file}"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            message = f"{what} has file_name {name!r}"
            raise _refused("images without a file name", message, "name its file")
        path, folders = image_path(self.place.images, name), self.place.folders
        if leaves(path, folders):
            message = f"{what} has file_name {name!r}, which leads out of the folder {folders[0]}"
            raise _refused("images outside of the data set's folder", message, FIX)
        width, height = (_pixels(entry, side, what) for side in ("width", "height"))
        key = number if isinstance(number, int) and abs(number) < 2**63 else 0
        return CocoImage(key, path, width, height, _written(entry["id"]), folders)

    def categories(self, entries: Iterable[dict[str, Any]]) -> dict[Id, tuple[str, Id]]:
        """Return name and id as written of the usable categories, by ascending id."""
        taken: set[str] = set()

        def read(number: Id, entry: dict[str, Any]) -> tuple[str, Id]:
            name = category_name(entry)
            if name is None or name in taken:
                message = f"category {number} in {self.file} has the name {entry.get('name')!r}"
                if name is not None:
                    message += ", as another one has"
                kind = "categories without a name of their own"
                raise _refused(kind, message, "give it a name of its own")
            taken.add(name)
            return name, _written(entry["id"])

        found = self._by_id(entries, "a category", read)
        return dict(sorted(found.items(), key=lambda item: _order(item[0])))

    def annotations(
        self, entries: Iterable[dict[str, Any]], images: Mapping[Id, CocoImage], categories: Any
    ) -> list[Annotation]:
        """Return the annotations whose images, categories and four numbers are known."""
        found = []
        for entry in entries:
            try:
                annotation = self._annotation(entry, images, categories)
            except UnusableError as error:
                self.problems.append(error.problem)
                continue
            if annotation is not None:
                found.append(annotation)
                self.problems += [annotation.problem] if annotation.problem else []
        return found

    def _annotation(
        self, entry: dict[str, Any], images: Mapping[Id, CocoImage], categories: Any
    ) -> Annotation | None:
        """Return an annotation, or None if what it belongs to is unusable and told so."""
        image_id = self._key(entry, "image", images)
        category = self._key(entry, "category", categories)
        if image_id is None or category is None:
            return None
        image, annotated = images[image_id], entry.get("bbox")
        box = _box(annotated)
        if box is None:
            message = f"has the bbox {shorten(repr(annotated), 80)} instead of four finite numbers"
            kind = "annotations without a box of four numbers"
            message = f"{self._named(entry)} {message}: x, y, width, height"
            raise UnusableError(Problem(kind, message, image_id=image.id))

        def told() -> str:
            return f"{self._named(entry)} has the box {annotated}"

        corners, problem = usable_box(box, image, told)
        area = _number(entry.get("area"))
        if area is None or not 0 < area < math.inf:
            area = (corners[2] - corners[0]) * (corners[3] - corners[1])
        crowd = _is_crowd(entry.get("iscrowd"))
        return Annotation(image, category, box, corners, crowd, area, problem)

    def _key(self, entry: Mapping[str, Any], noun: str, known: Mapping[Id, object]) -> Id | None:
        """Return the id of an annotation's image or category; None if that is unusable itself."""
        value = entry.get(f"{noun}_id")
        key = identity(value)
        if key in known:
            return key
        if key in self._unusable[noun]:
            return None
        kind = "annotations of unknown " + {"image": "images", "category": "categories"}[noun]
        message = f"{self._named(entry)} has the unknown {noun}_id {shorten(repr(value), 80)}"
        raise UnusableError(Problem(kind, message))

    def _named(self, entry: Mapping[str, Any]) -> str:
        # Ids of annotations only name them in errors: tools write numbers, UUIDs, or none.
        number = entry.get("id")
        name = "an annotation without id" if number is None else f"annotation {number}"
        return f"{name} in {self.file}"

    def _by_id(
        self,
        entries: Iterable[dict[str, Any]],
        noun: str,
        read: Callable[[Id, dict[str, Any]], Value],
    ) -> dict[Id, Value]:
        found: dict[Id, Value] = {}
        first: dict[Id, dict[str, Any]] = {}
        for entry in entries:
            number = identity(entry.get("id"))
            try:
                if number is None:
                    message = f"{noun} in {self.file} has id {entry.get('id')!r}"
                    fix = "give it a number or a text as id"
                    raise _refused(f"entries of {noun} without an id", message, fix)
                if number in first:
                    raise _occurs_twice(noun, number, self.file, same=entry == first[number])
                first[number] = entry
                found[number] = read(number, entry)
            except UnusableError as error:
                self.problems.append(error.problem)
        self._unusable[noun.split()[-1]] = first.keys() - found.keys()
        return found


def _occurs_twice(noun: str, number: Id, file: Path, *, same: bool) -> UnusableError:
    what = noun.split()[-1]
    if same:
        message = f"the entry of {what} {number} occurs twice in {file}"
        return UnusableError(Problem(f"entries of {noun} that occur twice", message))
    message = f"{what} id {number} occurs twice in {file}"
    return _refused(f"{what} ids that occur twice", message, "make the ids unique")


def _refused(kind: str, message: str, fix: str) -> UnusableError:
    return UnusableError(Problem(kind, message, fix, "refused"))


def identity(value: Any) -> Id | None:
    """Return an id in the form in which ids are compared: ``7``, ``7.0`` and ``"7"`` are one."""
    if type(value) is int:  # nearly all of millions
        return value
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        short = len(digits) < 100  # Python refuses to read numbers of thousands of digits
        if short and digits.isascii() and digits.isdigit() and str(int(text)) == text:
            return int(text)
        return text or None
    if isinstance(value, float) and value.is_integer():
        return int(value)  # some exporters write 640.0
    return None


def _written(value: Any) -> Id:
    return value if isinstance(value, str) else int(value)


def _order(number: Id) -> tuple[bool, Id]:
    return isinstance(number, str), number


def category_name(entry: Mapping[str, Any]) -> str | None:
    """Return the name of a category as text without spaces around it; None if it has none."""
    name = entry.get("name")
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)  # digits, or sizes: classes are named, not counted
    return (name.strip() or None) if isinstance(name, str) else None


def find_root_category(content: Lists) -> dict[str, Any] | None:
    """Return the entry that only stands above all other categories, as Roboflow writes one.

    It is no class: no box is of it, and all others name it as their supercategory.
    """
    used = {identity(box.get("category_id")) for box in content.annotations}
    categories = content.categories
    above = [category_name({"name": entry.get("supercategory")}) for entry in categories]
    if len(set(above)) > 2 or len(categories) < 2:
        return None
    for place, root in enumerate(categories):
        others = {*above[:place], *above[place + 1 :]}
        if others == {category_name(root)} != {None} and identity(root.get("id")) not in used:
            return root
    return None


def _pixels(entry: Mapping[str, Any], side: str, what: str) -> int:
    value = _number(entry.get(side))
    if value is None or not value.is_integer() or value < 1:
        fix = "give the pixels of the image file as an integer"
        raise _refused("images without a size", f"{what} has {side} {entry.get(side)!r}", fix)
    return int(value)


def _is_crowd(value: Any) -> bool:
    """Return whether ``iscrowd`` says so, as a number, a truth value or a word."""
    return value.strip().lower() in ("1", "true", "yes") if isinstance(value, str) else bool(value)


def _box(box: Any) -> Box | None:
    """Return (x, y, width, height), whether or not that is a usable box; None for anything else."""
    numbers = [_number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or None in numbers:
        return None
    x, y, width, height = cast(list[float], numbers)
    return x, y, width, height


def _number(value: Any) -> float | None:
    """Return a number, also if it is written as text."""
    if type(value) is float:  # nearly all of millions
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
