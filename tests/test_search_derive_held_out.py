"""Networks with inherited weights on held-out images: statistics, loss, detections."""

from dataclasses import replace

import pytest
import torch
from core_parts import random_architecture, random_choices, shake, tiny
from torch import nn

from adapt.architecture import Choices
from adapt.data.coco import load_split
from adapt.data.dataset import DetectionDataset, collate
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.detect import detect
from adapt.detector.retinanet import build_detector
from adapt.detector.statistics import batch_norms, recalibrate
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from search.derive.finished import SearchFiles
from search.derive.held_out import Examiner, held_out_loss
from search.train.step import detection_loss

CPU = torch.device("cpu")
CONFIG = DetectorConfig(num_classes=3, fpn_width=8, head_depth=1, score_threshold=0.0)


@pytest.fixture(params=["retinanet", "ssdlite"])  # without and with BatchNorms in the heads
def model(request):
    torch.manual_seed(0)
    network = random_architecture(tiny(), 0)
    found = build_detector(Backbone(network), replace(CONFIG, head=request.param))
    shake(found, 0)
    with torch.no_grad():
        for layer in found.head.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(10)  # they start so small that features hardly matter
    return found


@pytest.fixture
def images(tiny_data):
    return DetectionDataset(tiny_data, InputSize(64, 64))


def batches_of(images, size):
    numbers = range(len(images))
    return [collate([images[i] for i in numbers[k : k + size]]) for k in numbers[::size]]


def test_recalibrated_statistics_are_means_over_batches(model, images):
    batches = batches_of(images, 4)
    seen = {}
    for norm in batch_norms(model):
        norm.register_forward_pre_hook(lambda m, x: seen.setdefault(m, []).append(x[0].clone()))
    recalibrate(model, batches, CPU)
    assert len(seen) == len(batch_norms(model)) > 10
    for norm, inputs in seen.items():
        assert len(inputs) == 2
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in inputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, means)
        torch.testing.assert_close(norm.running_var, variances)


def test_recalibration_touches_nothing_but_statistics(model, images):
    before = {name: p.clone() for name, p in model.named_parameters()}
    recalibrate(model, batches_of(images, 4), CPU)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert {norm.momentum for norm in batch_norms(model)} == {nn.BatchNorm2d(1).momentum}


# The others' loss is a mean over the matched anchors of a batch.
@pytest.mark.parametrize("model", ["retinanet"], indirect=True)
def test_the_held_out_loss_is_a_mean_over_images_in_any_batches(model, images):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    whole, single, uneven = (
        held_out_loss(model, batches_of(images, size), CPU) for size in (8, 1, 3)
    )
    assert single == pytest.approx(whole, rel=1e-4)
    assert uneven == pytest.approx(whole, rel=1e-4)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not model.training


def test_the_held_out_loss_uses_running_statistics(model, images):
    (batch,) = batches_of(images, 8)
    found = held_out_loss(model, [batch], CPU)
    of_the_batch = float(detection_loss(model.train(), batch, CPU).detach())
    assert found != pytest.approx(of_the_batch, rel=1e-3)


def test_detections_are_in_pixels_of_the_original_images(model, images, tiny_data):
    model.eval()
    found = detect(model, batches_of(images, 3), tiny_data, CPU)
    assert [one.image_id for one in found] == list(tiny_data.image_ids)
    with torch.no_grad():
        (alone,) = model([images[5][0] / 255])
    with_area = alone["boxes"][(alone["boxes"][:, 2:] > alone["boxes"][:, :2]).all(dim=1)]
    torch.testing.assert_close(found[5].boxes, 2 * with_area, rtol=1e-4, atol=1e-2)
    assert len(with_area) > 0


@pytest.fixture
def search(searched):
    with SearchFiles(searched).open() as found:
        yield found


@pytest.fixture
def val(tiny_data):
    return load_split(tiny_data.annotations.parents[1], "val")


def test_a_network_is_examined_the_same_way_every_time(search, tiny_data, val):
    choices = Choices.of(*random_choices(search.supernet.space, 1))
    examiner = Examiner(search, tiny_data, val)
    found = examiner.examine(choices)
    assert found.loss == examiner.loss(choices) == Examiner(search, tiny_data, val).loss(choices)
    assert found.rank == (0.0, -found.loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, val: (train, train), r"8 images of .* are training images too"),
        (
            lambda train, val: (train, replace(val, class_names=("a", "b", "c"))),
            r"has boxes of a, c, the search has the classes disc, square, triangle; .* --data",
        ),
    ],
)
def test_images_that_prove_nothing_are_refused(search, tiny_data, val, change, message):
    with pytest.raises(AdaptError, match=message):
        Examiner(search, *change(tiny_data, val))
