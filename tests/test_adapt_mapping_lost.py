from copy import deepcopy

import pytest
import torch
from mapping_parts import IMAGES, network, trained

from adapt.detector.statistics import recalibrate_network
from adapt.mapping.activations import batched
from adapt.mapping.lost import lost_variance
from adapt.mapping.pretrained import map_backbone, operations_of
from adapt.network.backbone import Backbone
from adapt.space import Operation

OPS = (Operation(3, 4),)
SOURCE = network((8, OPS), (10, OPS))
EXACT = 1e-9


def test_the_same_network_loses_nothing_whatever_its_statistics() -> None:
    source = trained(SOURCE, 0)
    target = deepcopy(source)
    recalibrate_network(target, IMAGES[:1])
    assert lost_variance(source, target, IMAGES) == pytest.approx({"C3": 0, "C4": 0}, abs=EXACT)


@torch.no_grad()
@pytest.mark.parametrize(("factor", "share"), [(0.0, 1.0), (0.5, 0.25), (-1.0, 4.0)])
def test_a_tap_that_is_multiplied_loses_the_square_of_the_difference(
    factor: float, share: float
) -> None:
    source = trained(SOURCE, 0)
    target = deepcopy(source)
    ((_, last),) = operations_of(target)[-1]
    norm = last.conv[-1]
    norm.weight.mul_(factor)
    norm.bias.add_(3)  # what is constant is free
    lost = lost_variance(source, target, IMAGES)
    assert lost == pytest.approx({"C3": 0, "C4": share}, abs=EXACT)


@torch.no_grad()
@pytest.mark.parametrize("width", [4, 10, 12])
def test_channels_that_a_target_does_not_have_are_lost(width: int) -> None:
    source = trained(SOURCE, 1)
    target = Backbone(network((8, OPS), (width, OPS))).double()
    map_backbone(source, target, noise=0.0)
    lost = lost_variance(source, target, IMAGES)["C4"]
    recalibrate_network(source, batched(IMAGES))
    taps = torch.cat([source(image)["1"] for image in IMAGES])
    variances = taps.var((0, 2, 3), unbiased=False)
    assert lost == pytest.approx(float(variances[width:].sum() / variances.sum()), abs=EXACT)


def test_neither_network_is_changed() -> None:
    source, target = trained(SOURCE, 0), trained(SOURCE, 1)
    before = deepcopy([source.state_dict(), target.state_dict()])
    lost_variance(source, target, IMAGES)
    for network_before, after in zip(before, (source, target), strict=True):
        for name, tensor in after.state_dict().items():
            assert torch.equal(tensor, network_before[name])
