"""One data set gives the same boxes in every format; what does not fit is named with its file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_parts import annotation, write_set
from format_parts import as_voc, as_yolo
from PIL import Image

from adapt.data.check import check_data
from adapt.data.coco import CocoSplit, load_split
from adapt.data.layout import find_split, split_names
from adapt.errors import AdaptError

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
BOXES = [
    annotation(id=1, image_id=7, category_id=1, bbox=[1, 2, 10, 20]),
    annotation(id=2, image_id=7, category_id=2, bbox=[2, 3, 38, 27]),
    annotation(id=3, image_id=3, category_id=2, bbox=[4, 5, 6, 7]),
]


@pytest.fixture
def coco_set(tmp_path: Path) -> Path:
    return write_set(tmp_path / "coco", categories=CATEGORIES, annotations=BOXES)


@pytest.fixture
def voc_set(coco_set: Path, tmp_path: Path) -> Path:
    return as_voc(coco_set, tmp_path / "voc", ["train"])


@pytest.fixture
def yolo_set(coco_set: Path, tmp_path: Path) -> Path:
    return as_yolo(coco_set, tmp_path / "yolo", ["train"])


def boxes_by_image(split: CocoSplit) -> dict[str, list[tuple[float, ...]]]:
    """Class and corners of every box, by the stem of its image."""
    return {
        image.path.stem: [
            (int(label), *corners) for label, corners in zip(of.labels, of.xyxy, strict=True)
        ]
        for image, of in zip(split.images, split.boxes, strict=True)
    }


def assert_same(found: CocoSplit, expected: CocoSplit) -> None:
    assert found.class_names == expected.class_names
    ours, theirs = boxes_by_image(found), boxes_by_image(expected)
    assert ours.keys() == theirs.keys()
    for name, boxes in theirs.items():
        np.testing.assert_allclose(ours[name], boxes, rtol=1e-12, atol=1e-9)
    sizes = [{i.path.stem: (i.width, i.height) for i in s.images} for s in (found, expected)]
    assert sizes[0] == sizes[1]


def test_three_formats_give_the_same_boxes(coco_set: Path, voc_set: Path, yolo_set: Path) -> None:
    expected = load_split(coco_set, "train")
    assert sum(map(len, expected.boxes)) == 3
    for root in (voc_set, yolo_set, yolo_set / "data.yaml"):
        found = load_split(root, "train")
        assert_same(found, expected)
        assert not check_data(root, ["train"]).reports["train"].problems
        assert found.sha256 != expected.sha256


def test_classes_of_voc_have_the_order_of_cvats_list(voc_set: Path) -> None:
    before = load_split(voc_set, "train")
    hashed = before.sha256
    (voc_set / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\nmule:4,5,6::\n"
    )
    found = load_split(voc_set, "train")
    assert found.class_names == ("dog", "mule", "cat")  # one that is not listed comes last
    assert found.sha256 != hashed
    assert_same(found.matched(before.class_names, "before"), before)


@pytest.mark.shared
def test_three_formats_give_the_same_cells(shared_data: Path, tmp_path: Path) -> None:
    bccd = shared_data / "bccd"
    names = ["train", "val", "test"]
    voc, yolo = as_voc(bccd, tmp_path / "v", names), as_yolo(bccd, tmp_path / "y", names)
    for name in names:
        expected = load_split(bccd, name)
        for root in (voc, yolo):  # VOC's classes have no order
            assert_same(load_split(root, name).matched(expected.class_names, "COCO"), expected)


def assert_refused(root: Path, message: str) -> None:
    """The training split is refused in one sentence with a fix."""
    with pytest.raises(AdaptError, match=message) as caught:
        load_split(root, "train")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def moved(root: Path, pairs: dict[str, str]) -> None:
    for old, new in pairs.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / old, root / new)


def voc_beside_images(root: Path) -> None:
    moved(root, {f"JPEGImages/{n}.png": f"train/{n}.png" for n in "ab"})
    moved(root, {f"Annotations/{n}.xml": f"train/{n}.xml" for n in "ab"})
    for folder in ("ImageSets", "Annotations", "JPEGImages"):
        shutil.rmtree(root / folder)


def voc_of_a_year(root: Path) -> None:
    moved(root, {name: f"VOC2012/{name}" for name in ("ImageSets", "Annotations", "JPEGImages")})


def voc_without_lists(root: Path) -> None:
    shutil.rmtree(root / "ImageSets")


def voc_without_sizes(root: Path) -> None:
    for file in (root / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<width>40<", "<width>0<"))


@pytest.mark.parametrize(
    "change", [voc_beside_images, voc_of_a_year, voc_without_lists, voc_without_sizes]
)
def test_voc_is_recognised(change: Callable[[Path], None], coco_set: Path, voc_set: Path) -> None:
    change(voc_set)
    assert_same(load_split(voc_set, "train"), load_split(coco_set, "train"))


def roboflow(root: Path) -> None:
    moved(root, {"images/train": "train/images", "labels/train": "train/labels"})
    text = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
    (root / "data.yaml").write_text(text)


def list_of_images(root: Path) -> None:
    (root / "train.txt").write_text("./images/train/a.png\n./images/train/b.png\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")


def darknet(root: Path) -> None:
    moved(root, {"images/train": "obj_train_data"})
    for name in "ab":
        moved(root, {f"labels/train/{name}.txt": f"obj_train_data/{name}.txt"})
    shutil.rmtree(root / "labels")
    shutil.rmtree(root / "images")
    (root / "data.yaml").unlink()
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "train.txt").write_text("data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")


def labelling_tool(root: Path) -> None:
    for name in "ab":
        moved(root, {f"images/train/{name}.png": f"images/{name}.png"})
        moved(root, {f"labels/train/{name}.txt": f"labels/{name}.txt"})
    (root / "images" / "train").rmdir()
    (root / "labels" / "train").rmdir()
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")


def polygons(root: Path) -> None:
    for file in (root / "labels" / "train").iterdir():
        lines = []
        for line in file.read_text().splitlines():
            label, x, y, w, h = map(float, line.split())
            left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
            corners = (left, top, right, top, right, bottom, left, bottom)
            lines.append(f"{label:g} {' '.join(f'{value:.17g}' for value in corners)}")
        file.write_text("\n".join(lines))


def key_points(root: Path) -> None:
    for file in (root / "labels" / "train").iterdir():
        file.write_text("".join(f"{one} 0.5 0.5 2\n" for one in file.read_text().splitlines()))
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(f"{text}kpt_shape: [1, 3]\n")


@pytest.mark.parametrize(
    "change", [roboflow, list_of_images, darknet, labelling_tool, polygons, key_points]
)
def test_yolo_is_recognised(change: Callable[[Path], None], coco_set: Path, yolo_set: Path) -> None:
    change(yolo_set)
    assert_same(load_split(yolo_set, "train"), load_split(coco_set, "train"))


def test_images_without_labels_are_negatives(yolo_set: Path, voc_set: Path) -> None:
    (yolo_set / "labels" / "train" / "a.txt").unlink()
    (yolo_set / "labels" / "train" / "b.txt").write_text("\n")
    Image.new("RGB", (8, 8)).save(yolo_set / "images" / "train" / "c.png")
    split = load_split(yolo_set, "train")
    assert [len(boxes) for boxes in split.boxes] == [0, 0, 0]
    assert (split.images[2].width, split.class_names) == (8, ("cat", "dog"))


def test_boxes_that_begin_at_pixel_0_are_not_shifted(voc_set: Path) -> None:
    file = voc_set / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<xmin>5<", "<xmin>0<"))
    corners = boxes_by_image(load_split(voc_set, "train"))
    assert corners["b"] == [(1, 0.0, 6.0, 10.0, 12.0)]
    assert corners["a"][0] == (0, 2.0, 3.0, 11.0, 22.0)


def test_what_is_hard_to_see_is_no_object(voc_set: Path) -> None:
    file = voc_set / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("difficult>0", "difficult>1"))
    crowds = [of.crowd.tolist() for of in load_split(voc_set, "train").boxes]
    assert crowds == [[False, False], [True]]


def test_the_hash_follows_labels_classes_and_images(yolo_set: Path) -> None:
    seen = {load_split(yolo_set, "train").sha256}
    assert load_split(yolo_set, "train").sha256 in seen
    labels = yolo_set / "labels" / "train" / "a.txt"
    for change in (
        lambda: labels.write_text(f"{labels.read_text()}0 0.5 0.5 0.25 0.25\n"),
        lambda: (yolo_set / "images" / "train" / "c.png").symlink_to(
            yolo_set / "images" / "train" / "a.png"
        ),
        lambda: (yolo_set / "data.yaml").write_text(
            (yolo_set / "data.yaml").read_text().replace("cat", "lion")
        ),
    ):
        change()
        digest = load_split(yolo_set, "train").sha256
        assert digest not in seen
        seen.add(digest)


def yaml_says(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "data.yaml").write_text(text)


def first_label(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "labels" / "train" / "a.txt").write_text(text)


def no_labels(root: Path) -> None:
    shutil.rmtree(root / "labels")


def two_descriptions(root: Path) -> None:
    shutil.copy(root / "data.yaml", root / "other.yaml")


YOLO_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (first_label("0 1.7 0.5 0.1 0.1\n"), r"line 1 of .*a\.txt has 1\.7, which is no share"),
    (first_label("0 nan 0.5 0.1 0.1\n"), r"a\.txt has nan, which is no share"),
    (first_label("2 0.5 0.5 0.1 0.1\n"), r"has the class 2, .*data\.yaml names 0 to 1"),
    (first_label("0.5 0.5 0.5 0.1 0.1\n"), r"has the class 0\.5"),
    (first_label("0 0.5 0.5\n"), "has 2 numbers after the class, a box has 4"),
    (first_label("cat 0.5 0.5 0.1 0.1\n"), r"line 1 of .*a\.txt is 'cat 0\.5"),
    (first_label("0 0.5 0.5 0.1 0\n"), r"in line 1 of .*a\.txt .* of no size"),
    (no_labels, r"none of the 2 images of .* has a file of labels, such as .*labels/train/a\.txt"),
    (yaml_says("train: images/train\nnames: []\n"), "names no classes"),
    (yaml_says("train: images/train\nnames: {0: a, 2: b}\n"), "numbers its classes 0, 2; number"),
    (yaml_says("train: images/train\nnc: two\nnames: [a, b]\n"), "says nc: two and names 2"),
    (
        lambda root: (root / "labels/train/gone.txt").write_text("0 0.5 0.5 0.1 0.1\n"),
        r"gone\.txt has labels, and no image has its name",
    ),
    (
        lambda root: (root / "images/train/a.png").write_text("no image"),
        r"images/train/a\.png cannot be decoded",
    ),
    (yaml_says("train: images/train\nnc: 3\nnames: [a, b]\n"), "says nc: 3 and names 2 classes"),
    (yaml_says("train: images/train\nnames: [a, b\n"), "is not YAML"),
    (
        yaml_says("path: /home/them/set\ntrain: pictures/train\nnames: [a, b]\n"),
        "says path: /home/them/set, which does not exist here; set it to",
    ),
    (
        yaml_says("train: /home/them/set/gone\nnames: [a, b]\n"),
        "says train: /home/them/set/gone, which does not exist here; write the folder",
    ),
    (yaml_says("train: gone\nnames: [a, b]\n"), "names no folder of images that exists here"),
    (yaml_says("train: [images/train]\nnames: [a, b]\n"), r"gives \['images/train'\] as train"),
    (two_descriptions, r"has data\.yaml and other\.yaml, each of which describes a data set"),
]


@pytest.mark.parametrize(("change", "message"), YOLO_FAULTS)
def test_bad_yolo_is_told_in_one_sentence(
    change: Callable[[Path], object], message: str, yolo_set: Path
) -> None:
    change(yolo_set)
    assert_refused(yolo_set, message)


def xml_says(old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        file = root / "Annotations" / "a.xml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return change


VOC_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (xml_says("a.png", "b.png"), r"a\.xml names the image b\.png, and a\.png has its name"),
    (xml_says("</annotation>", ""), r"a\.xml is not XML"),
    (xml_says("annotation>", "annotations>"), r"a\.xml is CVAT's own format"),
    (xml_says("<xmin>2<", "<xmin>two<"), r"annotation 1 of a\.xml in .* has the bbox .*'two'"),
    (xml_says("<xmax>11<", "<xmax>1<"), r"1 of a\.xml .* of no size"),
    (xml_says("<width>40<", "<width>wide<"), r"image 1 in .* has width 'wide'"),
    (xml_says("<name>cat</name>", "<name></name>"), "has the unknown category_id None"),
    (
        lambda root: (root / "Annotations" / "a.xml").unlink(),
        r"a\.xml does not exist, .*train\.txt",
    ),
    (lambda root: (root / "ImageSets/Main/train.txt").write_text(""), "train.txt lists no images"),
]


@pytest.mark.parametrize(("change", "message"), VOC_FAULTS)
def test_bad_voc_is_told_in_one_sentence(
    change: Callable[[Path], object], message: str, voc_set: Path
) -> None:
    change(voc_set)
    assert_refused(voc_set, message)


def test_images_of_equal_names_in_folders_are_told_apart(voc_set: Path) -> None:
    for folder in ("Annotations", "JPEGImages"):
        moved(
            voc_set,
            {
                f"{folder}/a.{e}": f"{folder}/x/0.{e}"
                for e in ("xml", "png")
                if (voc_set / folder / f"a.{e}").exists()
            },
        )
        moved(
            voc_set,
            {
                f"{folder}/b.{e}": f"{folder}/y/0.{e}"
                for e in ("xml", "png")
                if (voc_set / folder / f"b.{e}").exists()
            },
        )
    (voc_set / "ImageSets" / "Main" / "train.txt").write_text("x/0\ny/0\n")
    split = load_split(voc_set, "train")
    assert [image.path.parent.name for image in split.images] == ["x", "y"]
    assert [len(boxes) for boxes in split.boxes] == [2, 1]


def test_a_name_that_fits_two_images_is_refused(voc_set: Path) -> None:
    Image.new("RGB", (40, 30)).save(voc_set / "JPEGImages" / "a.jpg")
    assert load_split(voc_set, "train").images[0].path.name == "a.png"  # as <filename> says
    xml_says("a.png", "a")(voc_set)
    assert_refused(voc_set, r"a\.xml may be of .*a\.jpg and .*a\.png; give images names")


def test_masks_and_hidden_copies_are_not_the_images(voc_set: Path) -> None:
    voc_beside_images(voc_set)
    for folder in ("masks", ".ipynb_checkpoints"):
        (voc_set / "train" / folder).mkdir()
        shutil.copy(voc_set / "train" / "a.png", voc_set / "train" / folder / "a.png")
    (voc_set / "train" / "._a.xml").write_text("binary")
    split = load_split(voc_set, "train")
    assert [image.path.parent.name for image in split.images] == ["train", "train"]


def test_names_with_spaces_are_names(voc_set: Path) -> None:
    moved(voc_set, {"Annotations/a.xml": "Annotations/my photo 1.xml"})
    moved(voc_set, {"JPEGImages/a.png": "JPEGImages/my photo 1.png"})
    lists = voc_set / "ImageSets" / "Main"
    (lists / "train.txt").write_text("my photo 1\r\nb\r\n")
    (lists / "cat_train.txt").write_text("b -1\n")
    assert split_names(voc_set) == ["train"]
    assert len(load_split(voc_set, "train")) == 2
    (lists / "train.txt").unlink()
    with pytest.raises(AdaptError, match="are of single classes; write a list of images"):
        split_names(voc_set)


def test_pixels_are_counted_alike_in_all_splits(voc_set: Path) -> None:
    for name, stem in (("train", "a"), ("val", "b")):
        (voc_set / "ImageSets" / "Main" / f"{name}.txt").write_text(f"{stem}\n")
    from_one = load_split(voc_set, "val")
    before = from_one.sha256
    file = voc_set / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<ymin>3<", "<ymin>0.4<"))
    from_zero = load_split(voc_set, "val")
    assert (from_zero.boxes[0].xyxy[0] - from_one.boxes[0].xyxy[0]).tolist() == [1, 1, 0, 0]
    assert from_zero.sha256 != before


def test_annotations_in_a_folder_of_any_name_are_found(voc_set: Path) -> None:
    voc_without_lists(voc_set)
    moved(voc_set, {"Annotations": "xmls", "JPEGImages": "images"})
    assert len(load_split(voc_set, "train")) == 2


def test_a_split_that_was_not_exported_is_no_other_folder(yolo_set: Path) -> None:
    text = (yolo_set / "data.yaml").read_text()
    (yolo_set / "data.yaml").write_text(f"{text}test: ../test/images\n")
    assert split_names(yolo_set) == ["train"]


def test_an_entry_whose_images_do_not_exist_is_named(yolo_set: Path) -> None:
    text = (yolo_set / "data.yaml").read_text()
    (yolo_set / "data.yaml").write_text(f"{text}val: images/vla\n")
    gone = r"no split 'val': .*data\.yaml says val: images/vla, which does not exist; .*\(train\)"
    with pytest.raises(AdaptError, match=gone):
        load_split(yolo_set, "val")
    with pytest.raises(AdaptError, match=r"no split 'test': looked for"):
        load_split(yolo_set, "test")


def test_images_and_labels_without_their_classes_ask_for_a_data_yaml(yolo_set: Path) -> None:
    (yolo_set / "data.yaml").unlink()
    with pytest.raises(AdaptError, match=r"add a data\.yaml that names the classes"):
        load_split(yolo_set, "train")


def test_images_of_the_data_set_come_before_those_beside_it(yolo_set: Path) -> None:
    roboflow(yolo_set)
    other = yolo_set.parent / "train" / "images"
    other.mkdir(parents=True)
    with pytest.raises(AdaptError, match=r"both .* and .* exist; write the one that is meant"):
        split_names(yolo_set)


def test_a_folder_above_may_be_called_images(coco_set: Path, yolo_set: Path) -> None:
    darknet(yolo_set)
    below = yolo_set.parent / "images" / "set"
    below.parent.mkdir()
    shutil.move(yolo_set, below)
    assert_same(load_split(below, "train"), load_split(coco_set, "train"))


def test_the_hash_follows_a_list_of_classes(yolo_set: Path) -> None:
    darknet(yolo_set)
    before = load_split(yolo_set, "train").sha256
    (yolo_set / "obj.names").write_text("dog\ncat\n")
    assert load_split(yolo_set, "train").sha256 != before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no]", ("yes", "no")),
        ("{0: 1e3, 1: null}", ("1e3", "null")),
        ("{'1': dog, '0': cat}", ("cat", "dog")),
    ],
)
def test_classes_may_be_called_anything(
    names: str, expected: tuple[str, ...], yolo_set: Path
) -> None:
    (yolo_set / "data.yaml").write_text(f"train: images\\train\nnc: '2'\nnames: {names}\n")
    assert load_split(yolo_set, "train").class_names == expected


def test_an_empty_line_between_classes_is_refused(yolo_set: Path) -> None:
    labelling_tool(yolo_set)
    (yolo_set / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(AdaptError, match=r"line 2 of .*classes\.txt is empty; name class 1"):
        load_split(yolo_set, "train")


def test_everything_in_one_folder_is_train(coco_set: Path, yolo_set: Path) -> None:
    labelling_tool(yolo_set)
    for name in "ab":
        moved(yolo_set, {f"images/{name}.png": f"{name}.png", f"labels/{name}.txt": f"{name}.txt"})
    (yolo_set / "images").rmdir()
    (yolo_set / "labels").rmdir()
    assert_same(load_split(yolo_set, "train"), load_split(coco_set, "train"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cache.data", b"\xff\x00\xfe"),
        ("hyp.data", b"a=1\n"),
        ("notes.yaml", b"caf\xe9: 1\n"),
        ("data.yaml", b"train: gone\nnames: [a]\n"),
    ],
)
def test_other_files_do_not_make_a_sound_set_unreadable(
    name: str, content: bytes, coco_set: Path
) -> None:
    (coco_set / name).write_bytes(content)
    assert find_split(coco_set, "train").format == "COCO"


def test_two_formats_at_once_are_refused(coco_set: Path, yolo_set: Path) -> None:
    shutil.copytree(coco_set / "annotations", yolo_set / "annotations")
    with pytest.raises(AdaptError, match=r"two formats, .*train\.json \(COCO\) and .*\(YOLO\)"):
        find_split(yolo_set, "train")


def test_a_folder_of_images_alone_has_no_splits(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert split_names(tmp_path) == []
    with pytest.raises(AdaptError, match=r"no split 'train'.*data\.yaml; pass another folder"):
        load_split(tmp_path, "train")
