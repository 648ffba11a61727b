import pytest
import torch
from core_parts import mostly_slow
from mapping_parts import IMAGES, UNSEEN, network
from mapping_parts import trained as with_other_statistics

from adapt.architecture import Architecture
from adapt.detector.statistics import recalibrate_network
from adapt.mapping.lost import lost_variance
from adapt.mapping.pretrained import map_backbone, operations_of
from adapt.mapping.refit import refit
from adapt.network.backbone import Backbone
from adapt.network.operations import MBConv
from adapt.space import Operation

E2, E4 = Operation(3, 2), Operation(3, 4)
SOURCE = network((8, (E4, E4)), (10, (E4, E4)))


def trained(architecture: Architecture, seed: int) -> Backbone:
    source = with_other_statistics(architecture, seed)
    recalibrate_network(source, IMAGES)
    return source


def mapped(source: Backbone, architecture: Architecture) -> Backbone:
    target = Backbone(architecture).double().eval()
    map_backbone(source, target, noise=0.0)
    return target


def test_what_was_copied_whole_stays() -> None:
    source = trained(SOURCE, 0)
    target = mapped(source, SOURCE)
    refit(source, target, IMAGES)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_operations_that_the_source_does_not_have_learn_to_add_nothing() -> None:
    source = trained(SOURCE, 0)
    target = mapped(source, network((8, (E4, E4, E4)), (12, (E4, E4, E2))))
    assert lost_variance(source, target, [UNSEEN])["C4"] > 0.5
    refit(source, target, IMAGES)
    lost = lost_variance(source, target, [UNSEEN])
    assert lost == pytest.approx({"C3": 0, "C4": 0}, abs=1e-3)


@torch.no_grad()
def twins(op: MBConv) -> None:
    """Let the second half of the hidden channels compute what the first half does."""
    *layers, _, _ = op.conv
    for tensor in (t for layer in layers for t in layer.state_dict().values() if t.dim()):
        half = len(tensor) // 2
        tensor[half:] = tensor[:half]


def test_projection_takes_over_what_channels_that_are_gone_wrote() -> None:
    source = trained(SOURCE, 1)
    for _, op in (pair for block in operations_of(source) for pair in block):
        twins(op)
    recalibrate_network(source, IMAGES)
    target = mapped(source, network((8, (E2, E2)), (10, (E2, E2))))
    before = lost_variance(source, target, IMAGES)
    refit(source, target, IMAGES)
    after = lost_variance(source, target, [UNSEEN])
    assert all(share > 0.5 for share in before.values())
    assert all(share < 0.05 for share in after.values())


@pytest.mark.parametrize("seed", mostly_slow(20, usual=3))
@pytest.mark.parametrize(
    "architecture",
    [
        network((8, (E2, E2)), (10, (E4, E2))),  # fewer hidden channels
        network((6, (E4, E4)), (7, (E4, E4))),  # narrower
        network((8, (E4,)), (10, (E4,))),  # shallower
        network((8, (Operation(5, 4), Operation(3, 1))), (10, (E2,))),
        network((8, (Operation(3, 2.3, se=True), E4)), (10, (E4, Operation(3, 2, se=True)))),
    ],
)
def test_fitted_backbone_is_closer_to_the_source_on_other_images(
    architecture: Architecture, seed: int
) -> None:
    source = trained(SOURCE, seed)
    target = mapped(source, architecture)
    before = lost_variance(source, target, [UNSEEN])
    refit(source, target, IMAGES)
    after = lost_variance(source, target, [UNSEEN])
    assert all(after[tap] < before[tap] for tap in after)


def test_fit_that_does_not_hold_on_other_images_is_not_taken() -> None:
    source = trained(SOURCE, 0)
    target = mapped(source, network((8, (E2, E2)), (10, (E2, E2))))
    one_position = [image[:1, :, :4, :4] for image in IMAGES]
    before = lost_variance(source, target, [UNSEEN])
    refit(source, target, one_position)
    after = lost_variance(source, target, [UNSEEN])
    assert all(after[tap] < max(1.05, before[tap] + 0.05) for tap in after)
