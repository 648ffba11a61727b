import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data_parts import CAT, IMAGE, annotation, read, write_set

from adapt.data.check import check_split
from adapt.data.coco import load_place, load_split
from adapt.data.dataset import DetectionDataset
from adapt.data.formats.place import Place
from adapt.data.images import InputSize
from adapt.errors import AdaptError


def test_area_falls_back_to_the_box_where_the_file_gives_none(tmp_path: Path) -> None:
    entries = [annotation(area=12.5), annotation(), annotation(area=None), annotation(area=0)]
    split = load_split(write_set(tmp_path / "set", annotations=entries), "train")
    assert split.boxes[0].areas.tolist() == [12.5, 200, 200, 200]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("[]", "has no list of images or annotations or categories"),
        ('{"images": [], "annotations": [], "categories": {}}', "has no list of categories"),
        ('{"images": [], "annotations": [], "categories": [{}]}', "holds no images"),
        ('{"images": [{}], "annotations": [], "categories": []}', "holds no categories"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AdaptError, match=rf"x\.json.*{message}"):
        load_place(Place(tmp_path / "x.json", tmp_path))


BAD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"images": [IMAGE, IMAGE]}, "the entry of image 7 occurs twice"),
    ({"images": [IMAGE | {"id": [7]}]}, r"has id \[7\]; give it a number or a text"),
    ({"images": [IMAGE | {"id": True}]}, "has id True; give it a number or a text"),
    ({"images": [IMAGE | {"id": ""}]}, "has id ''; give it a number or a text"),
    ({"images": [IMAGE, IMAGE | {"id": "7"}]}, "image id 7 occurs twice"),
    ({"images": [{"id": 7, "file_name": "a.png"}]}, "image 7 .* has width None; give the pixels"),
    ({"images": [IMAGE | {"width": None}]}, "image 7 .* has width None"),
    ({"images": [IMAGE | {"width": float("nan")}]}, "image 7 .* has width nan"),
    ({"images": [IMAGE | {"height": 0}]}, "has height 0; give the pixels"),
    ({"images": [IMAGE | {"file_name": ""}]}, "has file_name ''"),
    ({"images": ["a.png"]}, "an image .* has id None"),
    ({"categories": [CAT, CAT]}, "the entry of category 9 occurs twice"),
    ({"categories": [CAT, CAT | {"name": "dog"}]}, "category id 9 occurs twice"),
    ({"categories": [CAT, {"id": 5, "name": "cat"}]}, "category 5 .* has the name 'cat'"),
    ({"categories": [{"id": 9}]}, "category 9 .* has the name None"),
    ({"annotations": [annotation(image_id=8)]}, "annotation 1 .* unknown image_id 8"),
    ({"annotations": [annotation(category_id=1)]}, "annotation 1 .* unknown category_id 1"),
    ({"annotations": [annotation(bbox=None)]}, "has the bbox None instead of four finite numbers"),
    ({"annotations": [annotation(bbox=[1, 2, 3])]}, "four finite numbers"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ENTRIES)
def test_bad_entry_is_refused_with_value_and_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    root = write_set(tmp_path / "set", **changes)
    with pytest.raises(AdaptError, match=message) as error:
        load_split(root, "train")
    assert "train.json" in str(error.value)


@pytest.mark.parametrize("ids", [["a-uuid", "another"], [None, None], [2**70, 2**71], [1, 1]])
def test_ids_of_annotations_mean_nothing(tmp_path: Path, ids: list[Any]) -> None:
    entries = [annotation(id=number) for number in ids]
    split = load_split(write_set(tmp_path / "set", annotations=entries), "train")
    assert len(split.boxes[0]) == 2


def test_annotations_without_ids_are_accepted(tmp_path: Path) -> None:
    entry = annotation()
    del entry["id"]
    split = load_split(write_set(tmp_path / "set", annotations=[entry]), "train")
    assert len(split.boxes[0]) == 1


@pytest.mark.parametrize(
    ("value", "crowd"), [(1, True), ("1", True), ("0", False), (False, False), ("true", True)]
)
def test_crowds_of_any_spelling(tmp_path: Path, value: object, crowd: bool) -> None:
    root = write_set(tmp_path / "set", annotations=[annotation(iscrowd=value)])
    assert load_split(root, "train").boxes[0].crowd.tolist() == [crowd]


def test_names_that_are_numbers_are_read_as_text(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": 1}, {"id": 5, "name": 2.5}]
    split = load_split(write_set(tmp_path / "set", categories=categories), "train")
    assert split.class_names == ("2.5", "1")


@pytest.mark.parametrize("root_name", ["animals", "cat"])
def test_a_category_above_all_others_is_no_class(tmp_path: Path, root_name: str) -> None:
    root = {"id": 0, "name": root_name, "supercategory": "none"}
    below = [{"id": k, "name": n, "supercategory": root_name} for k, n in ((5, "dog"), (9, "cat"))]
    split = load_split(write_set(tmp_path / "set", categories=[root, *below]), "train")
    assert split.class_names == ("dog", "cat")
    assert f"category '{root_name}'" in check_split(split).warnings[0]


def test_a_category_with_boxes_or_beside_others_stays_a_class(tmp_path: Path) -> None:
    person = {"id": 1, "name": "person", "supercategory": "person"}  # as COCO has it
    own = [{"id": 5, "name": "dog", "supercategory": "cat"}, CAT]  # cat has boxes
    for categories in ([person, CAT, {"id": 5, "name": "dog"}], own):
        root = write_set(tmp_path / str(len(categories)), categories=categories)
        assert len(load_split(root, "train").class_names) == len(categories)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    path = root / "annotations" / "train.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(load_split(root, "train")) == 2


@pytest.mark.parametrize(
    "ids",
    [
        ("9" * 5000, "b"),
        ("0b7e4b0c-6a3f-4f0e-8a53-8f5f2f6b8d11", "b"),
        (2**127, 2**127 + 1),
        ("7", "007"),
        (2.0, "frame 3"),
    ],
)
def test_image_ids_of_any_kind_are_accepted(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    images = [IMAGE | {"id": ids[0]}, IMAGE | {"id": ids[1], "file_name": "b.png"}]
    boxes = [annotation(image_id=ids[1]), annotation(image_id=ids[1], bbox=[2, 2, 5, 5])]
    split = load_split(write_set(tmp_path / "set", images=images, annotations=boxes), "train")
    assert [image.annotated_id for image in split.images] == list(ids)
    assert [len(boxes) for boxes in split.boxes] == [0, 2]
    _, target = DetectionDataset(split, InputSize(32, 32))[1]
    assert (int(target["image_id"]), len(target["boxes"])) == (split.image_ids[1], 2)


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    entry = annotation(bbox=["1", "2", "10.5", "20"], image_id="7", category_id="9", area="12.5")
    images = [IMAGE | {"width": "40", "height": 30.0}]
    split = load_split(write_set(tmp_path / "set", annotations=[entry], images=images), "train")
    assert split.boxes[0].xyxy.tolist() == [[1, 2, 11.5, 22]]
    assert split.boxes[0].areas.tolist() == [12.5]
    assert (split.images[0].width, split.images[0].height) == (40, 30)


@pytest.mark.parametrize("value", [None, "", {}, float("nan"), float("inf"), -3, [[1, 2, 3, 4]]])
def test_what_is_not_needed_may_be_anything(tmp_path: Path, value: object) -> None:
    entry = annotation(segmentation=value, area=value, keypoints=value)
    category = CAT | {"supercategory": value}
    root = write_set(tmp_path / "set", annotations=[entry], categories=[category])
    split = load_split(root, "train")
    assert (split.boxes[0].areas.tolist(), split.class_names) == ([200], ("cat",))


def test_ids_of_categories_may_be_texts_and_names_lose_spaces_around_them(tmp_path: Path) -> None:
    categories = [{"id": "b", "name": " dog "}, {"id": "a", "name": "cat"}, {"id": 3, "name": "ox"}]
    entry = annotation(category_id="b")
    root = write_set(tmp_path / "set", annotations=[entry], categories=categories)
    split = load_split(root, "train")
    assert (split.class_names, split.category_ids) == (("ox", "cat", "dog"), (3, "a", "b"))
    assert split.boxes[0].labels.tolist() == [2]


def test_all_problems_are_found_at_once_and_each_once(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE | {"id": 3, "width": 0}, {"id": 4}]
    categories = [CAT, {"id": 5}]
    boxes = [
        annotation(image_id=3),  # of an image that is a problem itself
        annotation(category_id=5),  # the same, of a category
        annotation(image_id=8),
        annotation(bbox=None),
        annotation(bbox=[5, 5, 0, 3]),
        annotation(),
    ]
    root = write_set(tmp_path / "set", images=images, categories=categories, annotations=boxes)
    split = read(root)
    assert [problem.kind for problem in split.problems] == [
        "images without a size",
        "images without a file name",
        "categories without a name of their own",
        "annotations of unknown images",
        "annotations without a box of four numbers",
        "boxes of no size",
    ]
    assert len(split.boxes[0]) == 1
    with pytest.raises(AdaptError, match=r"image 3 .*5 more problems; `adapt data check` lists"):
        load_split(root, "train")
    with pytest.raises(AdaptError, match=r"image 3 .*2 more problems"):
        load_split(root, "train", repair=True)


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 10**400, 4],
        [True, 2, 3, 4],
        [1, 2, 3, 4, 5],
        {"x": 1},
        "1 2 3 4",
        [1, 2, None, 4],
        ["a"] * 4,
    ],
)
def test_annotations_without_four_numbers_are_left_out_by_repair(
    tmp_path: Path, box: object
) -> None:
    root = write_set(tmp_path / "set", annotations=[annotation(), annotation(id=2, bbox=box)])
    with pytest.raises(AdaptError, match=r"annotation 2 .* has the bbox"):
        load_split(root, "train")
    assert len(load_split(root, "train", repair=True).boxes[0]) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    root = write_set(tmp_path / "set", categories=[CAT | {"name": "café"}], annotations=[])
    path = root / "annotations" / "train.json"
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=1)
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert load_split(root, "train").class_names == ("café",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"name": "café"}'.encode("latin-1"), "no UTF-8 text .*; save it as UTF-8"),
        (gzip.compress(b"{}", mtime=0), "is compressed; unpack it"),
        (b'{"images": [],}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is not JSON"),
        (b"", "is not JSON"),
        (b'{"images": null, "annotations": null}', "no list of images or annotations"),
    ],
)
def test_what_is_no_coco_file_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    root = write_set(tmp_path / "set")
    (root / "annotations" / "train.json").write_bytes(data)
    with pytest.raises(AdaptError, match=message):
        load_split(root, "train")


@pytest.mark.parametrize("name", ["image_id", "category_id"])
@pytest.mark.parametrize("value", [None, [7], {}, float("nan"), 2.5, "x", True])
def test_annotations_of_nothing_are_left_out_by_repair(
    tmp_path: Path, name: str, value: object
) -> None:
    root = write_set(tmp_path / "set", annotations=[annotation(), annotation(**{name: value})])
    with pytest.raises(AdaptError, match=f"has the unknown {name}"):
        load_split(root, "train")
    assert len(load_split(root, "train", repair=True).boxes[0]) == 1


def test_an_image_that_is_listed_twice_alike_is_read_once_by_repair(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE, IMAGE])
    assert load_split(root, "train", repair=True).image_ids == (7,)


def test_a_category_without_name_or_supercategory_is_no_root(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", categories=[{"id": 5}, CAT], annotations=[annotation()])
    assert "category 5" in str(read(root).problems[0])
