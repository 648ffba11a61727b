"""Names that files give do not lead out of the data set's folder; linked folders go on working."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from data_parts import IMAGE, content, write_set
from format_parts import as_voc, as_yolo
from PIL import Image

from adapt.data.annotated_image import read_image
from adapt.data.check import check_data
from adapt.data.coco import load_split
from adapt.data.inside import ALLOWED
from adapt.data.pooled import write_divided
from adapt.errors import AdaptError
from export.samples import training_images

CLASSES = [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}]
Change = Callable[[Path], object]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image, and labels, that are nobody's business."""
    (tmp_path / "home").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "home" / "a.png")
    (tmp_path / "home" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "home" / "a.xml").write_text("<annotation></annotation>")
    return tmp_path / "home" / "a.png"


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    """One data set in every format, in folders beside the secret."""
    coco = write_set(tmp_path / "coco", categories=CLASSES)
    voc, yolo = (
        as_voc(coco, tmp_path / "voc", ["train"]),
        as_yolo(coco, tmp_path / "yolo", ["train"]),
    )
    return {"coco": coco, "voc": voc, "yolo": yolo}


def refusal(root: Path) -> str:
    try:
        load_split(root, "train")
    except AdaptError as error:
        return str(error)
    return ""


def coco_names(name: str) -> Change:
    changed = json.dumps(content(images=[IMAGE | {"file_name": name}, IMAGE | {"id": 3}]))
    return lambda root: (root / "annotations" / "train.json").write_text(changed)


def voc_names(name: str) -> Change:
    def change(root: Path) -> None:
        file = root / "Annotations" / "a.xml"
        file.write_text(file.read_text().replace("a.png", name))
        (root / "JPEGImages" / "a.png").unlink()

    return change


def voc_lists(name: str) -> Change:
    return lambda root: (root / "ImageSets" / "Main" / "train.txt").write_text(f"{name}\nb\n")


def yolo_lists(name: str) -> Change:
    def change(root: Path) -> None:
        (root / "train.txt").write_text(f"{name}\n")
        (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")

    return change


def yolo_says(text: str) -> Change:
    return lambda root: (root / "data.yaml").write_text(f"{text}\nnames: [cat, dog]\n")


def darknet_says(text: str) -> Change:
    def change(root: Path) -> None:
        (root / "data.yaml").unlink()
        (root / "obj.data").write_text(text)

    return change


LEAVING: list[tuple[str, Change, str]] = [
    ("coco", coco_names("../../home/a.png"), r"image 7 in .*json has file_name '\.\./\.\./home/a"),
    ("coco", coco_names("..\\..\\home\\a.png"), "has file_name"),
    ("coco", coco_names("%2e%2e/../home/a.png"), "has file_name"),
    ("coco", coco_names("../images/../../home/a.png"), "has file_name"),
    ("coco", coco_names("../../home/gone.png"), "has file_name"),
    ("coco", coco_names("{home}/a.png"), "has file_name '/"),
    ("voc", voc_names("../../home/a.png"), r"a\.xml names '\.\./\.\./home/a\.png'"),
    ("voc", voc_names("{home}/a.png"), r"a\.xml names '/"),
    ("voc", voc_lists("../../home/a"), r"train\.txt lists '\.\./\.\./home/a'"),
    ("voc", voc_lists("{home}/a"), r"train\.txt lists '/"),
    ("yolo", yolo_lists("../home/a.png"), r"train\.txt lists \.\./home/a\.png"),
    ("yolo", yolo_lists("..\\home\\a.png"), r"train\.txt lists"),
    ("yolo", yolo_lists("{home}/a.png"), r"train\.txt lists /"),
    ("yolo", yolo_says("path: ../home\ntrain: ."), r"data\.yaml says path: \.\./home"),
    ("yolo", yolo_says("path: {home}\ntrain: ."), r"data\.yaml says path: /"),
    ("yolo", yolo_says("train: ../home"), r"data\.yaml says train: \.\./home"),
    ("yolo", yolo_says("train: {home}"), r"data\.yaml says train: /"),
    ("yolo", darknet_says("train=images/train\nnames=../home/a.txt"), r"obj\.data says names = "),
]


@pytest.mark.parametrize(("form", "change", "message"), LEAVING)
def test_a_name_that_leads_out_is_refused_in_one_sentence_unless_allowed(
    form: str,
    change: Change,
    message: str,
    sets: dict[str, Path],
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(sets[form])
    for file in (path for path in sets[form].rglob("*") if path.suffix not in (".png", "")):
        file.write_text(file.read_text().replace("{home}", str(secret.parent)))
    sentence = refusal(sets[form])
    assert re.search(message, sentence)
    assert "\n" not in sentence
    assert "leads out of the folder" in sentence
    assert f"list its folder in the environment variable {ALLOWED}" in sentence
    monkeypatch.setenv(ALLOWED, f"/somewhere:{secret.parent}")
    assert "leads out" not in refusal(sets[form])  # but what is found there may not fit


def test_an_image_that_is_a_link_to_elsewhere_is_not_opened_unless_allowed(
    sets: dict[str, Path], secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in sets.values():
        (image,) = root.rglob("a.png")
        image.unlink()
        image.symlink_to(secret)
        found = check_data(root, ["train"]).reports["train"].problems
        assert any("is a link to" in str(problem) for problem in found)
        with pytest.raises(AdaptError, match=rf"a\.png is a link to .*home/a\.png.*{ALLOWED}"):
            training_images([root])
    monkeypatch.setenv(ALLOWED, str(secret.parent))
    for root in sets.values():
        assert not check_data(root, ["train"]).reports["train"].problems
        assert len(training_images([root])) == 2


def linked_root(root: Path) -> Path:
    moved = root.rename(root.with_name("disk"))
    root.symlink_to(moved)
    return root


def linked_folder(root: Path) -> Path:
    (images,) = {path.parent for path in root.rglob("a.png")}
    moved = images.rename(root.with_name("disk"))
    images.symlink_to(moved)
    return root


def linked_inside(root: Path) -> Path:
    """As DVC and git-annex do: a file is a link into a store in the data set's folder."""
    (image,) = root.rglob("a.png")
    (root / ".store").mkdir()
    image.symlink_to(image.rename(root / ".store" / "b1946ac9.png"))
    return root


@pytest.mark.parametrize("link", [linked_root, linked_folder, linked_inside])
@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_linked_folders_go_on_working(
    form: str, link: Callable[[Path], Path], sets: dict[str, Path]
) -> None:
    split = load_split(link(sets[form]), "train")
    assert [read_image(image).size for image in split.images] == [(40, 30), (40, 30)]


@pytest.mark.parametrize("link", [linked_root, linked_folder, linked_inside])
def test_a_division_of_linked_images_is_read_without_a_switch(
    link: Callable[[Path], Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    split = load_split(link(sets["coco"]), "train")
    write_divided([split], {"train": [0], "val": [1]}, tmp_path / "divided")
    for name in ("train", "val"):
        (image,) = load_split(tmp_path / "divided", name).images
        assert read_image(image).size == (40, 30)


@pytest.mark.parametrize("name", ["../images/a.png", "x/../a.png", "{images}/a.png"])
def test_odd_names_that_stay_inside_are_names(sets: dict[str, Path], name: str) -> None:
    root = sets["coco"]
    (root / "images" / "x").mkdir()
    coco_names(name.format(images=root / "images"))(root)
    assert read_image(load_split(root, "train").images[0]).size == (40, 30)
