import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapt.data.annotated_image import CocoImage, read_image
from adapt.data.check import check_split
from adapt.data.coco import load_annotations, load_split
from adapt.errors import AdaptError

ORIENTATION, TURN_LEFT = 0x0112, 8  # EXIF: shown turned left by a quarter


def content(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30 pixels; the first has one box of each of two classes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [annotation(id=1, category_id=9), annotation(id=2, category_id=5)],
    } | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20]} | changes


def write_set(root: Path, **changes: Any) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(root / "images" / name)
    (root / "annotations" / "train.json").write_text(json.dumps(content(**changes)))
    return root


def with_boxes(root: Path, *boxes: list[float], **changes: Any) -> Path:
    entries = [annotation(id=k, bbox=box, **changes) for k, box in enumerate(boxes)]
    return write_set(root, annotations=entries)


def test_labels_count_from_zero_by_ascending_category_id(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    assert (split.class_names, split.category_ids) == (("dog", "cat"), (5, 9))
    assert split.boxes[0].labels.tolist() == [1, 0]


def test_boxes_are_corners_and_images_keep_the_order_of_the_file(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    assert split.image_ids == (7, 3)
    assert split.boxes[0].xyxy.tolist() == [[1, 2, 11, 22]] * 2
    assert split.boxes[1].xyxy.shape == (0, 4)


def test_area_falls_back_to_the_box_where_the_file_gives_none(tmp_path: Path) -> None:
    entries = [annotation(area=12.5), annotation(), annotation(area=None), annotation(area=0)]
    split = load_split(write_set(tmp_path / "set", annotations=entries), "train")
    assert split.boxes[0].areas.tolist() == [12.5, 200, 200, 200]


def test_subset_keeps_the_given_order_and_the_repairs_of_its_images(tmp_path: Path) -> None:
    split = load_split(with_boxes(tmp_path / "set", [1, 1, 0, 5]), "train")
    assert split.subset([3, 7]).image_ids == (3, 7)
    assert len(split.subset([3]).boxes[0]) == 0
    assert (len(split.subset([7]).repairs), len(split.subset([3]).repairs)) == (1, 0)


@pytest.mark.parametrize("image_ids", [[], [7, 8]])
def test_subset_of_unknown_or_no_images_is_refused(tmp_path: Path, image_ids: list[int]) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    with pytest.raises(AdaptError, match="choose at least one of its 2 image ids"):
        split.subset(image_ids)


def test_limit_spreads_over_the_whole_file(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": "a.png", "width": 40, "height": 30} for k in range(9)]
    split = load_split(write_set(tmp_path / "set", images=images), "train")
    assert split.limit(3).image_ids == (0, 4, 8)
    assert split.limit(None) is split


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/train.json", "images", "train"),
        ("annotations/train.json", "images/train", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
    ],
)
def test_layout_is_recognised(tmp_path: Path, file: str, folder: str, split: str) -> None:
    for place in ((tmp_path / file).parent, tmp_path / folder):
        place.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content()))
    found = load_split(tmp_path, split)
    assert (found.annotations, found.folder) == (tmp_path / file, tmp_path / folder)


def test_captions_beside_the_instances_are_no_splits(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for name in ("instances_train2017", "captions_val2017"):
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content()))
    with pytest.raises(AdaptError, match=r"\(train2017\)"):
        load_split(root, "val")


def test_missing_split_lists_what_was_looked_for_and_what_exists(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"no split 'test'.*instances_test\*.*\(train\)"):
        load_split(write_set(tmp_path / "set"), "test")


def test_two_splits_of_one_name_must_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_train{year}.json").write_text("{}")
    with pytest.raises(AdaptError, match=r"2 splits named 'train'.*train2014, train2017"):
        load_split(tmp_path, "train")


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="nowhere is not a folder"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(AdaptError, match=r"none\.json does not exist"):
        load_annotations(tmp_path / "none.json", tmp_path)
    root = write_set(tmp_path / "set")
    with pytest.raises(AdaptError, match=r"image folder .*gone of .*train\.json does not exist"):
        load_annotations(root / "annotations" / "train.json", root / "gone")


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
        load_annotations(tmp_path / "x.json", tmp_path)


IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
CAT = {"id": 9, "name": "cat"}
BAD_ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"images": [IMAGE, IMAGE]}, "image id 7 occurs twice"),
    ({"images": [IMAGE | {"id": "7"}]}, "has id '7'; it must be an integer"),
    ({"images": [IMAGE | {"id": 2**63}]}, r"has id 9223372036854775808; it must be below 2\^63"),
    ({"images": [IMAGE | {"width": None}]}, "image 7 .* has width None"),
    ({"images": [IMAGE | {"width": float("nan")}]}, "image 7 .* has width nan"),
    ({"images": [IMAGE | {"height": 0}]}, "is 40x0 pixels"),
    ({"images": [IMAGE | {"file_name": ""}]}, "has file_name ''"),
    ({"images": ["a.png"]}, "an image .* has id None"),
    ({"categories": [CAT, CAT]}, "category id 9 occurs twice"),
    ({"categories": [CAT, {"id": 5, "name": "cat"}]}, "category 5 .* has the name 'cat'"),
    ({"categories": [{"id": 9}]}, "category 9 .* has the name None"),
    ({"annotations": [annotation(image_id=8)]}, "annotation 1 .* unknown image_id 8"),
    ({"annotations": [annotation(category_id=1)]}, "annotation 1 .* unknown category_id 1"),
    ({"annotations": [annotation(bbox=None)]}, "has the bbox None; give four finite numbers"),
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


@pytest.mark.parametrize(
    ("box", "kind", "kept"),
    [
        ([-5, 2, 10, 10], "clipped", [[0, 2, 5, 12]]),
        ([35, 25, 10, 10], "clipped", [[35, 25, 40, 30]]),
        ([5, 5, 0, 3], "dropped", []),
        ([5, 5, 3, 0], "dropped", []),
        ([50, 5, 3, 3], "dropped", []),
        ([5, 30, 3, 3], "dropped", []),
        ([9, 9, -3, 4], "dropped", []),
        ([1, 2, 3, float("nan")], "dropped", []),
        ([1, float("inf"), 3, 4], "dropped", []),
    ],
)
def test_unusable_box_is_mended_and_listed(
    tmp_path: Path, box: list[float], kind: str, kept: list[list[float]]
) -> None:
    split = load_split(with_boxes(tmp_path / "set", box), "train")
    assert split.boxes[0].xyxy.tolist() == kept
    assert split.boxes[0].areas.tolist() == [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in kept]
    assert [(repair.image_id, repair.kind) for repair in split.repairs] == [(7, kind)]
    report = check_split(split)
    assert (report.clipped_boxes, report.dropped_boxes) == (kind == "clipped", kind == "dropped")
    assert any(str(box) in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 0, 3], r"train\.json has the box \[5, 5, 0, 3\] of no size"),
        ([9, 9, -3, 4], r"train\.json has the box \[9, 9, -3, 4\] of negative size"),
        ([1, 2, float("nan"), 4], r"has the box \[1, 2, nan, 4\] of numbers that are not finite"),
    ],
)
def test_strict_loading_refuses_what_would_be_mended(
    tmp_path: Path, box: list[float], message: str
) -> None:
    root = with_boxes(tmp_path / "set", box)
    with pytest.raises(AdaptError, match=message):
        load_split(root, "train", strict=True)


@pytest.mark.parametrize("ids", [["a-uuid", "another"], [None, None], [2**70, 2**71], [1, 1]])
def test_ids_of_annotations_mean_nothing(tmp_path: Path, ids: list[Any]) -> None:
    entries = [annotation(id=number) for number in ids]
    split = load_split(write_set(tmp_path / "set", annotations=entries), "train", strict=True)
    assert len(split.boxes[0]) == 2


def test_annotations_without_ids_are_accepted(tmp_path: Path) -> None:
    entry = annotation()
    del entry["id"]
    split = load_split(write_set(tmp_path / "set", annotations=[entry]), "train", strict=True)
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


@pytest.mark.parametrize(
    ("annotated", "stored"),
    [
        ("day 1\\a.png", "day 1/a.png"),
        ("images/a.png", "a.png"),
        ("my%20a.png", "my a.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("images\\my%20a.png", "my a.png"),
    ],
)
def test_file_names_as_tools_write_them(tmp_path: Path, annotated: str, stored: str) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"file_name": annotated}])
    path = root / "images" / stored
    path.parent.mkdir(exist_ok=True)
    (root / "images" / "b.png").rename(path)
    (root / "images" / "a.png").unlink(missing_ok=True) if stored != "a.png" else None
    assert not check_split(load_split(root, "train")).problems


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    path = root / "annotations" / "train.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(load_split(root, "train")) == 2


def test_a_split_tells_how_many_boxes_were_cut_and_left_out(tmp_path: Path) -> None:
    split = load_split(with_boxes(tmp_path / "set", [-5, 2, 10, 10], [5, 5, 0, 3]), "train")
    assert "1 were cut at the border of their image and 1 left out" in split.repaired()
    assert load_split(write_set(tmp_path / "sound"), "train").repaired() == ""


def test_box_within_one_pixel_of_the_border_is_left_alone(tmp_path: Path) -> None:
    split = load_split(with_boxes(tmp_path / "set", [-0.5, 2, 41, 10]), "train", strict=True)
    assert split.boxes[0].xyxy.tolist() == [[-0.5, 2, 40.5, 12]]


def test_report_counts_boxes_by_class_size_and_kind(tmp_path: Path) -> None:
    entries = [
        annotation(area=100),
        annotation(area=100),
        annotation(area=2000, bbox=[0, 0, 40, 30]),
        annotation(area=10000, bbox=[0, 0, 40, 29]),
        annotation(iscrowd=1),
    ]
    report = check_split(load_split(write_set(tmp_path / "set", annotations=entries), "train"))
    assert report.boxes_per_class == {"dog": 0, "cat": 4}
    assert report.boxes_per_size == {"small": 2, "medium": 1, "large": 1}
    assert (report.boxes, report.crowd_boxes, report.empty_images) == (5, 1, 1)
    assert "no box of 1 classes (dog)" in report.warnings[-1]


def test_report_counts_copies_of_a_box_but_not_crowds_around_it(tmp_path: Path) -> None:
    entries = [annotation(), annotation(), annotation(iscrowd=1), annotation(category_id=5)]
    report = check_split(load_split(write_set(tmp_path / "set", annotations=entries), "train"))
    assert report.duplicate_boxes == 1
    assert "repeats 1 boxes" in report.warnings[0]


def test_report_is_json_and_progress_reaches_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check_split(
        load_split(write_set(tmp_path / "set"), "train"), lambda *done: calls.append(done)
    )
    assert calls == [(1, 2), (2, 2)]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_report_finds_missing_corrupt_and_resized_images(tmp_path: Path) -> None:
    root = write_set(
        tmp_path / "set", images=[IMAGE | {"id": k, "file_name": f"{k}.jpg"} for k in (1, 2, 7)]
    )
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images" / "2.jpg")
    data = (root / "images" / "2.jpg").read_bytes()
    (root / "images" / "2.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (41, 30)).save(root / "images" / "7.jpg")
    report = check_split(load_split(root, "train"))
    assert (report.unreadable_images, report.mismatched_images) == (2, 1)
    fragments = ("1.jpg does not exist", "2.jpg cannot be decoded", "7.jpg is 41x30 pixels")
    for fragment, problem in zip(fragments, report.problems, strict=True):
        assert fragment in problem


def test_split_without_boxes_is_a_problem(tmp_path: Path) -> None:
    report = check_split(load_split(write_set(tmp_path / "set", annotations=[]), "train"))
    assert "holds no boxes" in report.problems[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (4, 3), "white").convert(mode).save(path)
    image = read_image(CocoImage(1, path, 4, 3))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 3), "red").convert("P")
    palette.save(tmp_path / "x.png", transparency=bytes(range(256)))
    assert read_image(CocoImage(1, tmp_path / "x.png", 4, 3)).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_image_is_refused_rather_than_saturated(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40000, dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(AdaptError, match=r"x\.png has pixels of mode I;16"):
        read_image(CocoImage(1, tmp_path / "x.png", 4, 3))


def rotated(path: Path) -> Path:
    """Store 4x2 pixels, left half white, to be shown as 2x4 with the white half below."""
    pixels = Image.new("L", (4, 2))
    pixels.paste(255, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_LEFT
    pixels.save(path, exif=exif)
    return path


def test_rotated_image_is_turned_when_annotated_as_displayed(tmp_path: Path) -> None:
    image = read_image(CocoImage(1, rotated(tmp_path / "x.png"), width=2, height=4))
    assert image.size == (2, 4)
    assert np.asarray(image)[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_rotated_image_is_left_when_annotated_as_stored(tmp_path: Path) -> None:
    image = read_image(CocoImage(1, rotated(tmp_path / "x.png"), width=4, height=2))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 255, 0, 0]


def test_report_counts_rotated_and_gray_images(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"width": 2, "height": 4}])
    rotated(root / "images" / "a.png")
    report = check_split(load_split(root, "train"))
    assert (report.rotated_images, report.grayscale_images) == (1, 1)
    assert (report.unreadable_images, report.mismatched_images) == (0, 0)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "crowds"),
    [
        ("bccd", "train", 205, 2804, 0),
        ("bccd", "test", 72, 945, 0),
        ("tiny_coco", "train", 50, 470, 5),
        ("tiny_coco", "val2017", 50, 382, 5),
    ],
)
def test_real_data_is_sound(
    shared_data: Path, name: str, split: str, images: int, boxes: int, crowds: int
) -> None:
    report = check_split(load_split(shared_data / name, split, strict=True))
    assert (report.images, report.boxes, report.crowd_boxes) == (images, boxes, crowds)
    assert not report.problems
