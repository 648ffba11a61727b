"""Damaged data sets are read, repaired or refused in one sentence, whatever is in their files."""

import json
import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage_parts import EDITS, changed_values, edited, sentence
from data_parts import CAT, IMAGE, annotation, content, write_set
from format_parts import as_voc, as_yolo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapt.data.check import check_data
from adapt.data.coco import CocoSplit, load_split
from adapt.data.dataset import DetectionDataset
from adapt.data.images import InputSize, open_image, upright_size

# What Pillow warns of, users see; here warnings would be errors.
pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
FEW, MANY = 12, 400
Change = Callable[[Path], object]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    """One data set in every format."""
    coco = write_set(tmp_path / "coco", categories=CLASSES)
    voc = as_voc(coco, tmp_path / "voc", ["train"])
    return {"coco": coco, "voc": voc, "yolo": as_yolo(coco, tmp_path / "yolo", ["train"])}


def checked(split: CocoSplit) -> None:
    """What was read can be trained on."""
    for image, boxes in zip(split.images, split.boxes, strict=True):
        assert min(image.width, image.height) >= 1
        assert np.isfinite(boxes.xyxy).all()
        assert np.isfinite(boxes.areas).all()
        assert (boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all()
        assert (boxes.xyxy >= -1).all()
        assert (boxes.xyxy[:, 2:] <= (image.width + 1, image.height + 1)).all()
        assert ((boxes.labels >= 0) & (boxes.labels < len(split.class_names))).all()
    dataset = DetectionDataset(split, InputSize(64, 64))
    for number in range(len(dataset)):
        pixels, target = dataset[number]
        assert pixels.shape == (3, 64, 64)
        assert torch.isfinite(target["boxes"]).all()


def refusal(root: Path, *, repair: bool = False) -> str:
    """Why a training split is refused, in one sentence; empty if it is read."""
    return sentence(lambda: checked(load_split(root, "train", repair=repair)))


def coco(**changes: Any) -> Change:
    text = json.dumps(content(categories=CLASSES) | changes)
    return lambda root: (root / "annotations" / "train.json").write_text(text)


def coco_box(*box: Any) -> Change:
    return coco(annotations=[annotation(bbox=list(box))])


def file(name: str, data: bytes | str) -> Change:
    return lambda root: (root / name).write_bytes(
        data if isinstance(data, bytes) else data.encode()
    )


def in_xml(old: str, new: str) -> Change:
    def change(root: Path) -> None:
        path = root / "Annotations" / "a.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


JSON_FILE, LABELS, XML = "annotations/train.json", "labels/train/a.txt", "Annotations/a.xml"
LISTED = "ImageSets/Main/train.txt"
LAUGHS = "<!DOCTYPE l [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {b} '{f'&{a};' * 20}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ALIASES = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGED: list[tuple[str, Change, str]] = [
    ("coco", file(JSON_FILE, b""), "is not JSON"),
    ("coco", file(JSON_FILE, b"\xff\xfe\x00"), "is no UTF-8 text"),
    ("coco", file(JSON_FILE, b"\0" * 100), "is not JSON"),
    ("coco", file(JSON_FILE, "[" * 100_000), "is not JSON"),
    ("coco", file(JSON_FILE, "1" * 10_000), "is not JSON"),
    ("coco", file(JSON_FILE, "null"), "has no list of images"),
    ("coco", file(JSON_FILE, b"\x1f\x8b\x08"), "is compressed"),
    ("coco", coco(images=None), "has no list of images"),
    ("coco", coco(images={"7": IMAGE}), "has no list of images"),
    ("coco", coco(images=[None, 3]), "an image .* has id None"),
    ("coco", coco(images=[IMAGE | {"id": float("nan")}]), "has id nan"),
    ("coco", coco(images=[IMAGE | {"id": 2**70}]), "unknown image_id 7"),
    ("coco", coco(images=[IMAGE | {"width": 1e308}]), "a.png is 40x30 pixels"),
    ("coco", coco(images=[IMAGE | {"width": 2**70}]), "a.png is 40x30 pixels"),
    ("coco", coco(images=[IMAGE | {"width": "wide"}]), "has width 'wide'"),
    ("coco", coco(images=[IMAGE | {"width": -40}]), "has width -40"),
    ("coco", coco(images=[IMAGE | {"width": True}]), "has width True"),
    ("coco", coco(images=[IMAGE | {"width": 30, "height": 40}]), "its annotations say 30x40"),
    ("coco", coco(images=[IMAGE | {"file_name": 3}]), "has file_name 3"),
    ("coco", coco(images=[IMAGE | {"file_name": "a\0.png"}]), "does not exist"),
    ("coco", coco(images=[IMAGE | {"file_name": "."}]), "cannot be decoded"),
    ("coco", coco(images=[IMAGE | {"file_name": "x" * 5000}]), "does not exist"),
    ("coco", coco(categories=[CAT, {"id": None, "name": "x"}]), "has id None"),
    ("coco", coco(categories=[{"id": 9, "name": ["cat"]}]), r"has the name \['cat'\]"),
    ("coco", coco(categories=[{"id": 9, "name": " "}]), "has the name ' '"),
    ("coco", coco(annotations=["box"]), "unknown image_id None"),
    ("coco", coco(annotations=[annotation(image_id=[7])]), r"unknown image_id \[7\]"),
    ("coco", coco(annotations=[annotation(category_id={})]), r"unknown category_id \{\}"),
    ("coco", coco_box(), "instead of four finite numbers"),
    ("coco", coco_box(1, 2, 3, [4]), "instead of four finite numbers"),
    ("coco", coco_box(1, 2, 3, None), "instead of four finite numbers"),
    ("coco", coco_box(1, 2, 3, 1e999), "not finite"),
    ("coco", coco_box(1, 2, float("nan"), 4), "not finite"),
    ("coco", coco_box(1, 2, -3, 4), "negative size"),
    ("coco", coco_box(1, 2, 0, 4), "of no size"),
    ("coco", coco_box(1e-320, 2, 1e-320, 4), ""),
    ("coco", coco_box(1, 2, 2**1100, 4), "instead of four finite numbers"),
    ("coco", coco_box(1, 2, 1e300, 4), "sticks out"),
    ("coco", coco_box(-1e300, 2, 1e300, 4), "outside of|of no size"),
    ("voc", file(XML, b""), "is not XML"),
    ("voc", file(XML, b"\0\0"), "is not XML"),
    (
        "voc",
        file(XML, "<annotation>" + "<a>" * 3000 + "</a>" * 3000 + "</annotation>"),
        "not valid",
    ),
    ("voc", file(XML, LAUGHS + "]><annotation>&i;</annotation>"), "is not XML"),
    (
        "voc",
        file(XML, "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation>&x;"),
        "XML",
    ),
    ("voc", file(XML, "<?xml version='1.0' encoding='klingon'?><annotation/>"), "is not XML"),
    ("voc", file(XML, "<annotation>text</annotation>"), ""),
    ("voc", file(XML, "<annotation><object>cat</object></annotation>"), "has the unknown category"),
    ("voc", file(XML, "<annotation><size>9</size><filename><x/></filename></annotation>"), ""),
    ("voc", in_xml("a.png", "x" * 5000), "names|cannot be|^$"),
    ("voc", in_xml("<width>40<", "<width>1e999<"), "has width '1e999'"),
    ("voc", in_xml("<xmin>2<", "<xmin>nan<"), "has the bbox"),
    ("voc", in_xml("<xmin>2<", "<xmin>2</xmin><xmin>3<"), "has the bbox|^$"),
    ("voc", in_xml("<bndbox>", "<bndbox>5</bndbox><bndbox>"), "has the bbox|^$"),
    ("voc", file(LISTED, b"\xff\xff\n"), "is no UTF-8 text"),
    ("voc", file(LISTED, "x" * 5000), "does not exist"),
    ("yolo", file(LABELS, b"\xff\xff 1 2"), "is no UTF-8 text"),
    ("yolo", file(LABELS, "1e999 0.5 0.5 0.1 0.1"), "has the class inf"),
    ("yolo", file(LABELS, "0 0.5 0.5 1e999 0.1"), "has inf, which is no share"),
    ("yolo", file(LABELS, "0 0.5 0.5 -0.1 0.1"), "no share|negative size"),
    ("yolo", file(LABELS, "0 " + "0.5 " * 1001), "has 1001 numbers"),
    ("yolo", file("data.yaml", "names: a\ntrain: " + "[" * 1500), "is not YAML"),
    ("yolo", file("data.yaml", b"train: \x07\nnames: [a]"), "is not YAML"),
    ("yolo", file("data.yaml", f"{ALIASES}train: *i\nnames: [a]\n"), r"has YAML aliases"),
    ("yolo", file("data.yaml", f"train: {'x' * 5000}\nnames: [a]\n"), "names no folder of images"),
    ("yolo", file("data.yaml", "train: !!python/name:os.system\nnames: [a]\n"), "names no folder"),
    ("yolo", file("data.yaml", 'path: "a\\0b"\ntrain: images/train\nnames: [a, b]\n'), ""),
]


@pytest.mark.parametrize(("form", "change", "message"), DAMAGED)
def test_a_damaged_annotation_is_told_in_one_sentence(
    form: str, change: Change, message: str, sets: dict[str, Path]
) -> None:

    change(sets[form])
    said = refusal(sets[form])
    assert re.search(message, said) if message else not said, said
    refusal(sets[form], repair=True)
    sentence(lambda: check_data(sets[form], ["train"]))


def picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, form, **options)
    return file.getvalue()


def animated() -> bytes:
    file = BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def huge(data: bytes) -> bytes:
    """A PNG whose header promises 2^31 x 2^31 pixels."""
    return data[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + data[24:]


TURNED = Image.Exif()
TURNED[0x0112] = 6
ODD_IMAGES = {
    "empty": (b"", "cannot be decoded"),
    "text": (b"no image at all, a letter\n" * 9, "cannot be decoded"),
    "zeros": (bytes(4000), "cannot be decoded"),
    "page": (b"<!doctype html><title>404</title>", "cannot be decoded"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "cannot be decoded"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n",
        "decoded",
    ),
    "half PNG": (picture("PNG")[:900], "cannot be decoded"),
    "half JPEG": (picture("JPEG")[:900], "cannot be decoded"),
    "half WebP": (picture("WEBP")[:90], "cannot be decoded"),
    "half TIFF": (picture("TIFF")[:900], "cannot be decoded"),
    "huge": (huge(picture("PNG")), "cannot be decoded|megapixels, more than the limit"),
    "16 bit": (picture("TIFF", "I;16"), "convert it to 8 bits"),
    "32 bit": (picture("TIFF", "I"), "convert it to 8 bits"),
    "floats": (picture("TIFF", "F"), "convert it to 8 bits"),
    "CMYK": (picture("JPEG", "CMYK"), ""),
    "palette": (picture("PNG", "P"), ""),
    "bilevel": (picture("PNG", "1"), ""),
    "gray": (picture("JPEG", "L"), ""),
    "gray and alpha": (picture("PNG", "LA"), ""),
    "alpha": (picture("PNG", "RGBA"), ""),
    "animated": (animated(), ""),
    "bitmap": (picture("BMP"), ""),
    "turned": (picture("JPEG", exif=TURNED), ""),
    "damaged EXIF": (
        picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "^$|cannot be decoded",
    ),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_opened_by_its_content_or_refused(
    name: str, suffix: str, tmp_path: Path
) -> None:
    data, message = ODD_IMAGES[name]
    root = write_set(
        tmp_path / "set", images=[IMAGE | {"file_name": f"a{suffix}"}, IMAGE | {"id": 3}]
    )
    (root / "images" / "b.png").replace(root / "images" / "a.png")
    (root / "images" / f"a{suffix}").write_bytes(data)
    change = [IMAGE | {"file_name": f"a{suffix}"}]
    coco(images=change)(root)

    said = refusal(root)
    assert re.search(message, said) if message else not said, said
    problems = check_data(root, ["train"]).reports["train"].problems
    assert bool(problems) == bool(said)


FORMS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PPM", "ICO", "JPEG2000"]


def quietly(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == FEW,
        suppress_health_check=list(HealthCheck),
    )


def damage_images(form: str, path: Path, examples: int) -> None:
    whole = picture(form, exif=TURNED) if form in ("PNG", "JPEG", "TIFF", "WEBP") else picture(form)

    @quietly(examples)
    @given(EDITS)
    def opens_or_refuses(edits: Any) -> None:
        path.write_bytes(edited(whole, edits))
        for read in (open_image, upright_size):
            sentence(lambda: read(path))  # noqa: B023

    opens_or_refuses()


def damage_annotations(name: str, sets: dict[str, Path], examples: int) -> None:
    form, path = FILES[name]
    path = sets[form] / path
    whole = path.read_bytes()

    @quietly(examples)
    @given(st.data())
    def reads_or_refuses(data: st.DataObject) -> None:
        if form == "coco" and data.draw(st.booleans()):
            path.write_text(json.dumps(data.draw(changed_values(json.loads(whole)))))
        else:
            path.write_bytes(edited(whole, data.draw(EDITS)))
        refusal(sets[form], repair=data.draw(st.booleans()))

    reads_or_refuses()


FILES = {
    "COCO": ("coco", JSON_FILE),
    "VOC": ("voc", XML),
    "VOC's list": ("voc", LISTED),
    "YOLO": ("yolo", LABELS),
    "data.yaml": ("yolo", "data.yaml"),
}


@pytest.mark.parametrize("form", FORMS)
def test_damaged_pixels_are_opened_or_refused(form: str, tmp_path: Path) -> None:
    damage_images(form, tmp_path / "a.png", FEW)


@pytest.mark.parametrize("name", FILES)
def test_damaged_annotations_are_read_or_refused(name: str, sets: dict[str, Path]) -> None:
    damage_annotations(name, sets, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_pixels_damaged_in_many_ways_are_opened_or_refused(form: str, tmp_path: Path) -> None:
    damage_images(form, tmp_path / "a.png", MANY)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_annotations_damaged_in_many_ways_are_read_or_refused(
    name: str, sets: dict[str, Path]
) -> None:
    damage_annotations(name, sets, MANY)
