import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import random_architecture, shake
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from adapt.data.images import PADDING, InputSize, fit
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo, load_detector, read_detector_info, save_detector
from adapt.detector.retinanet import anchor_generator, build_detector, build_head, build_head_tower
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.space import SearchSpace


@pytest.fixture
def info(tiny_space: SearchSpace) -> DetectorInfo:
    architecture = random_architecture(tiny_space, seed=3)
    config = DetectorConfig(3, fpn_width=8, head_depth=1, score_threshold=0.0)
    return DetectorInfo(architecture, config, InputSize(64, 96), ("a", "b", "c"))


@pytest.fixture
def model(info: DetectorInfo) -> RetinaNet:
    torch.manual_seed(0)
    model = info.build()
    shake(model, seed=1)
    return model.eval()


@pytest.mark.parametrize("head", ["retinanet", "fcos", "ssdlite"])
def test_a_seed_draws_the_heads_before_the_pyramid(info: DetectorInfo, head: Any) -> None:
    """In another order the same seed would give other weights than it gave before."""
    config = DetectorConfig(3, fpn_width=8, head_depth=1, head=head)
    body = Backbone(info.architecture)
    torch.manual_seed(0)
    expected = build_head(config).state_dict()
    torch.manual_seed(0)
    for name, tensor in build_detector(body, config).head.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("difference", [0, 1])
def test_p6_is_fed_by_c5_whatever_its_width(info: DetectorInfo, difference: int) -> None:
    fpn_width = info.architecture.tap_widths[-1] + difference
    backbone = build_detector(
        Backbone(info.architecture), DetectorConfig(3, fpn_width=fpn_width)
    ).backbone.eval()
    image = torch.rand(1, 3, 64, 96)
    c5 = backbone.body(image)["2"]
    assert torch.equal(backbone(image)["p6"], backbone.fpn.extra_blocks.p6(c5))


@pytest.mark.parametrize("width", [16, 64, 256])
def test_four_convolutions_of_a_tower_keep_the_signal_whatever_their_width(width: int) -> None:
    """RetinaNet's own deviation of 0.01 would leave 0.0008 of it at 64 channels."""
    torch.manual_seed(0)
    tower = build_head_tower(width, 4)
    signal = torch.randn(4, width, 24, 24)
    inside = tower(signal)[:, :, 4:-4, 4:-4]  # zeros enter at the border
    assert 0.3 < inside.square().mean() / signal.square().mean() < 3


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_head_has_the_asked_depth_and_trains(info: DetectorInfo, depth: int) -> None:
    model = build_detector(
        Backbone(info.architecture), DetectorConfig(3, fpn_width=8, head_depth=depth)
    )
    assert len(model.head.classification_head.conv) == depth
    assert len(model.head.regression_head.conv) == depth
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    losses = model([torch.rand(3, 64, 96)], [target])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_anchors_of_any_number_are_spread_over_the_same_octave(scales: int) -> None:
    config = DetectorConfig(3, anchor_size=32, anchor_scales=scales, fpn_width=8, head_depth=0)
    cells = anchor_generator(config).cell_anchors
    sides = [(cell[:, 2:] - cell[:, :2]).prod(1).sqrt() for cell in cells]
    assert all(len(side) == config.anchors_per_cell == 3 * scales for side in sides)
    middle = sides[0].log2().mean().item()
    assert middle == pytest.approx(5 + 1 / 3, abs=0.05)  # of 32, 40 and 50 pixels
    assert sides[1].mean().item() == pytest.approx(2 * sides[0].mean().item(), rel=0.02)


def test_nothing_is_learned_from_anchors_on_a_crowd(info: DetectorInfo) -> None:
    torch.manual_seed(0)
    model = info.build().train()
    image, box = torch.rand(3, 64, 64), torch.tensor([[2.0, 2.0, 30.0, 30.0]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    crowd = torch.tensor([[32.0, 0.0, 64.0, 64.0]])
    features = list(model.backbone(image[None]).values())
    outputs = model.head(features)
    anchors = model.anchor_generator(ImageList(image[None], [(64, 64)]), features)
    plain = model.compute_loss([target], outputs, anchors)
    none = model.compute_loss([target | {"crowds": crowd[:0]}], outputs, anchors)
    some = model.compute_loss([target | {"crowds": crowd}], outputs, anchors)
    assert torch.equal(none["classification"], plain["classification"])
    assert torch.equal(some["bbox_regression"], plain["bbox_regression"])
    # What is left out is the background among the anchors that lie on the crowd by half.
    matched = model._matched(target | {"crowds": crowd}, anchors[0])
    assert torch.equal(matched >= 0, model._matched(target, anchors[0]) >= 0)
    ignored = (matched == -2) & (model._matched(target, anchors[0]) == -1)
    x1, _, x2, _ = anchors[0][ignored].unbind(1)
    inside = (x2.clamp(max=64) - x1.clamp(min=32)) / (x2 - x1)
    assert int(ignored.sum()) > 10
    assert (inside >= 0.5).all()
    assert some["classification"].item() < plain["classification"].item()


@pytest.mark.parametrize(
    ("box_loss", "expected"),
    [
        ("l1", 0.5),
        ("giou", 1 - 1 / 3),  # half a side apart: a third is common, and the hull is the union
        ("diou", 1 - 1 / 3 + 0.25 / 3.25),  # squares of the distance and of the hull's diagonal
        ("ciou", 1 - 1 / 3 + 0.25 / 3.25),  # the same shape
    ],
)
def test_a_box_learns_by_the_chosen_loss(
    info: DetectorInfo, box_loss: Any, expected: float
) -> None:
    config = DetectorConfig(2, fpn_width=8, head_depth=0, box_loss=box_loss, box_loss_weight=3.0)
    model = build_detector(Backbone(info.architecture), config)
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0], [200.0, 200.0, 232.0, 232.0]])
    target = {"boxes": torch.tensor([[16.0, 0.0, 48.0, 32.0]]), "labels": torch.tensor([1])}
    model._matched = lambda target, anchors: torch.tensor([0, -1])
    outputs = {"cls_logits": torch.zeros(1, 2, 2), "bbox_regression": torch.zeros(1, 2, 4)}
    losses = model.compute_loss([target], outputs, [anchors])
    assert losses["bbox_regression"].item() == pytest.approx(3 * expected, rel=1e-5)


def test_head_of_depth_four_is_torchvisions(info: DetectorInfo) -> None:
    ours = build_detector(Backbone(info.architecture), DetectorConfig(80, fpn_width=16)).head
    theirs = RetinaNetHead(16, 9, 80)
    ours.load_state_dict(theirs.state_dict())  # strict: same names, same shapes
    features = [torch.rand(1, 16, 4, 6), torch.rand(1, 16, 2, 3)]
    for name, out in theirs(features).items():
        assert torch.equal(ours(features)[name], out)


def test_anchors_are_three_octave_fractions_by_three_ratios() -> None:
    cells = anchor_generator(DetectorConfig(1, anchor_size=20)).cell_anchors
    for level, anchors in enumerate(cells):
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        sides = [20 * 2**level * 2 ** (octave / 3) for octave in range(3)]
        # torchvision rounds sizes and corners to whole pixels.
        ratios = [0.5] * 3 + [1.0] * 3 + [2.0] * 3
        assert (height / width).tolist() == pytest.approx(ratios, rel=0.1)
        assert (width * height).sqrt()[3:6].tolist() == pytest.approx(sides, abs=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("fpn_width", 0),
        ("head_depth", -1),
        ("anchor_size", 0),
        ("score_threshold", 1.5),
        ("nms_threshold", -0.1),
        ("candidates", 0),
        ("detections", 0),
        ("box_loss", "iou"),
        ("box_loss_weight", 0),
        ("box_loss_weight", float("inf")),
    ],
)
def test_impossible_detector_is_refused(field: str, value: Any) -> None:
    with pytest.raises(AdaptError, match=rf"detector\.{field} must .*{value}"):
        DetectorConfig(**{"num_classes": 3, field: value})


def test_detector_file_round_trip_is_bit_identical(
    tmp_path: Path, model: RetinaNet, info: DetectorInfo
) -> None:
    save_detector(tmp_path / "d.safetensors", model, info)
    loaded, loaded_info = load_detector(tmp_path / "d.safetensors")
    assert loaded_info == info
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        before, after = model([image])[0], loaded([image])[0]
    assert len(before["scores"]) == info.detector.detections
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_detector_file_keeps_its_provenance(
    tmp_path: Path, model: RetinaNet, info: DetectorInfo
) -> None:
    save_detector(tmp_path / "d.safetensors", model, info, copied_share=0.5)
    _, header = read_detector_info(tmp_path / "d.safetensors")
    assert header["copied_share"] == 0.5


def described(path: Path, description: Any, tensors: dict[str, Tensor] | None = None) -> None:
    save_file(tensors or {"a": torch.zeros(1)}, path, metadata={"adapt": json.dumps(description)})


def header_of(info: DetectorInfo, **changes: Any) -> dict[str, Any]:
    return {"format": "adapt-detector", "version": 1, **info.to_dict(), **changes}


BAD_FILES: list[tuple[Callable[[Path, DetectorInfo], Any], str]] = [
    (lambda path, info: None, "does not exist"),
    (lambda path, info: path.write_bytes(b"not a tensor"), "not a readable safetensors file"),
    (lambda path, info: path.write_bytes(path.with_suffix(".good").read_bytes()[:-9]), "readable"),
    (lambda path, info: save_file({"a": torch.zeros(1)}, path), "not an adapt detector file"),
    (lambda path, info: described(path, []), "not an adapt detector file"),
    (lambda path, info: described(path, header_of(info, format="adapt-x")), "'adapt-x'"),
    (lambda path, info: described(path, header_of(info, version=2)), "version 2"),
    (lambda path, info: described(path, header_of(info, detector={"depth": 1})), "depth"),
    (lambda path, info: described(path, {"format": "adapt-detector", "version": 1}), "missing"),
    (lambda path, info: described(path, header_of(info)), "weights"),
]


@pytest.mark.parametrize(("write", "fragment"), BAD_FILES)
def test_bad_detector_file_is_refused(
    tmp_path: Path,
    model: RetinaNet,
    info: DetectorInfo,
    write: Callable[[Path, DetectorInfo], Any],
    fragment: str,
) -> None:
    path = tmp_path / "d.safetensors"
    save_detector(path.with_suffix(".good"), model, info)
    write(path, info)
    with pytest.raises(AdaptError) as caught:
        load_detector(path)
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "fragment"),
    [
        ((65, 96), "got 65x96; use 96x96"),
        ((64, 100), "got 64x100; use 64x128"),
        ((0, 96), "at least 32x32 pixels, got 0x96"),
        ((64, 96, "stretch"), "got 'stretch'"),
    ],
)
def test_impossible_input_is_refused(size: tuple[Any, ...], fragment: str) -> None:
    with pytest.raises(AdaptError) as caught:
        InputSize(*size)
    assert fragment in str(caught.value)


def test_fixed_size_rounds_up_to_multiples_of_32() -> None:
    assert InputSize(800, 1333, "shortest-edge").fixed() == InputSize(800, 1344)
    assert InputSize(64, 96).fixed() == InputSize(64, 96)


@pytest.mark.parametrize(
    ("image", "expected"),
    [((480, 640), (800, 1067)), ((400, 1000), (533, 1333)), ((1000, 400), (1333, 533))],
)
def test_shortest_edge_scales_the_short_side_unless_the_long_one_is_too_long(
    image: tuple[int, int], expected: tuple[int, int]
) -> None:
    pixels, _ = fit(Image.new("RGB", image[::-1]), InputSize(800, 1333, "shortest-edge"))
    assert tuple(pixels.shape[1:]) == expected


@pytest.mark.parametrize("size", [InputSize(128, 192), InputSize(96, 320, "shortest-edge")])
@pytest.mark.parametrize("image_size", [(300, 200), (200, 300), (77, 401), (50, 50)])
def test_a_box_comes_back_through_the_factors(size: InputSize, image_size: tuple[int, int]) -> None:
    image = Image.new("RGB", image_size)
    box = [image_size[0] // 4, image_size[1] // 5, image_size[0] // 2, image_size[1] // 2]
    ImageDraw.Draw(image).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], fill="white")
    pixels, (fx, fy) = fit(image, size)
    rows, columns = (pixels[0] > 127).float().mul(pixels[0] != PADDING).nonzero().unbind(1)
    found = [columns.min() / fx, rows.min() / fy, (columns.max() + 1) / fx, (rows.max() + 1) / fy]
    assert [float(side) for side in found] == pytest.approx(box, abs=1 / min(fx, fy))


def test_letterbox_pads_right_and_below_only() -> None:
    pixels, factors = fit(Image.new("RGB", (100, 100), "white"), InputSize(64, 96))
    assert factors == (0.64, 0.64)
    assert (pixels[:, :64, :64] == 255).all()
    assert (pixels[:, :, 64:] == PADDING).all()
