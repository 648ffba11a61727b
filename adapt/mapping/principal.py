"""How is a source rewritten so that its first channels are those that matter? (principal axes)

The output of an MBConv is linear (no activation follows), so the channels that a block's operations
add to can be rotated: their projections write rotated channels, and what reads them undoes it. The
axes are the principal ones of what the operations pass on, by falling variance, as SliceGPT
(arXiv 2401.15024) does for transformers. Hidden channels lie between activations and can only be
sorted: by the variance that they contribute. Those inside of squeeze-excitation are sorted by their
weights. The function stays the same, the mapping of :mod:`adapt.mapping.pretrained` then keeps much
more of it. A source of bottlenecks has no axes to rotate, see :mod:`adapt.mapping.bottlenecks`.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.ops import SqueezeExcitation

from adapt.mapping.activations import Passed, passed_on
from adapt.mapping.bottlenecks import sort_bottlenecks
from adapt.mapping.layers import matrix, projection, reorder, reorder_input, scale_and_shift
from adapt.mapping.pretrained import operations_of
from adapt.network.backbone import Backbone
from adapt.network.operations import MBConv
from adapt.traits import traits_of


@torch.no_grad()
def principal_source(source: Backbone, images: Iterable[Tensor]) -> Backbone:
    """Return a backbone of the same function whose channels are sorted by what they pass on.

    The taps' channels are rotated, those of bottlenecks sorted: what reads them, such as a trained
    pyramid, does not fit any more. Stem and first block are the same, as no search touches them.

    Args:
        source: Backbone with trained parameters; it is not changed.
        images: Unlabelled normalised images, each ``Tensor[N, 3, H, W]``. They decide about the
            axes; the function is the same whichever they are.
    """
    return _rotated(source, images)[0]


@torch.no_grad()
def principal_detector(detector: RetinaNet, images: Iterable[Tensor]) -> RetinaNet:
    """Return a detector of the same function, its backbone as of :func:`principal_source`.

    What reads the taps, the pyramid's lateral convolutions and P6, reads rotated channels.

    Args:
        detector: Trained detector around a :class:`Backbone`; it is not changed.
        images: As of :func:`principal_source`.
    """
    detector = deepcopy(detector).eval()
    source = detector.backbone.body
    assert isinstance(source, Backbone)
    detector.backbone.body, bases = _rotated(source, images)
    fpn = detector.backbone.fpn
    taps = [bases[tap - 1] for tap in source.architecture.taps[detector.backbone.unread :]]
    readers = [*(lateral[0] for lateral in fpn.inner_blocks), fpn.extra_blocks.p6]
    for reader, basis in zip(readers, [*taps, taps[-1]], strict=True):
        weight = torch.einsum("oihw,ij->ojhw", reader.weight.double(), basis)
        reader.weight.copy_(weight)
    return detector


def _rotated(source: Backbone, images: Iterable[Tensor]) -> tuple[Backbone, list[Tensor]]:
    """Return the backbone in its principal axes, and Tensor[C, C] of every block, as columns."""
    rotated = deepcopy(source).eval()
    if traits_of(source.architecture.source).form == "bottleneck":
        orders = sort_bottlenecks(rotated, images)
        return rotated, [_permutation(order) for order in orders]
    passed = passed_on(rotated, images)
    bases = []
    blocks = [[op for _, op in block if isinstance(op, MBConv)] for block in operations_of(rotated)]
    for block, following in pairwise([*blocks, []]):
        readers = [*block[1:], *following[:1]]
        basis = _basis(sum_of_covariances(block, passed), readers)
        bases.append(basis)
        for op in block:
            _rotate_output(op, basis, passed[op])
        for reader in readers:
            _rotate_input(reader, basis)
    for op in (op for block in blocks for op in block if op.shape.expands):
        _sort_hidden(op, passed[op])
    return rotated, bases


def sum_of_covariances(block: Sequence[MBConv], passed: dict[MBConv, Passed]) -> Tensor:
    """Return Tensor[C, C] of a block whose operations all add to the same C channels."""
    return torch.stack([passed[op].out.covariance for op in block]).sum(0)


def _basis(covariance: Tensor, readers: Sequence[MBConv]) -> Tensor:
    """Return Tensor[C, C], the new axes as columns, by falling variance."""
    if not all(reader.shape.expands for reader in readers):
        # Its depthwise convolution reads the channels one by one: they can only be sorted.
        return _permutation(covariance.diagonal().argsort(descending=True, stable=True))
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    signed: Tensor = axes * largest.sign()  # of the two directions of an axis always the same
    return signed


def _permutation(order: Tensor) -> Tensor:
    """Return Tensor[C, C], the axes that come in another order, as columns."""
    return torch.eye(len(order), dtype=torch.float64)[:, order]


def _rotate_output(op: MBConv, basis: Tensor, passed: Passed) -> None:
    """Let the operation write rotated channels: its last BatchNorm's scale goes to the weight.

    The BatchNorm has the statistics of the images then, as training measures them, and scales by
    their standard deviation, so that evaluation mode computes the rotation and nothing else.
    """
    project, norm = projection(op)
    scale, shift = scale_and_shift(norm)
    weight, offset = basis.T @ (scale[:, None] * matrix(project)), basis.T @ shift
    mean = basis.T @ passed.out.mean - offset
    variance = (basis * (passed.out.covariance @ basis)).sum(0).clamp_min(0)
    project.weight.copy_(weight[:, :, None, None])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(offset + mean)


def _rotate_input(op: MBConv, basis: Tensor) -> None:
    """Let the operation read rotated channels as it read those before."""
    if not op.shape.expands:
        _reorder_hidden(op, basis.argmax(0))
        return
    (expand,) = op.input_readers()
    expand.weight.copy_((matrix(expand) @ basis)[:, :, None, None])


def _sort_hidden(op: MBConv, passed: Passed) -> None:
    """Sort hidden channels by the variance that each contributes to the output, falling."""
    project, norm = projection(op)
    scale, _ = scale_and_shift(norm)
    strength = (scale[:, None] * matrix(project)).square().sum(0)
    contributed = passed.hidden.variance * strength
    _reorder_hidden(op, contributed.argsort(descending=True, stable=True))


def _reorder_hidden(op: MBConv, order: Tensor) -> None:
    *layers, project, _ = op.conv
    for layer in layers:
        if isinstance(layer, SqueezeExcitation):
            _reorder_excitation(layer, order)
            continue
        for module in layer.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                reorder(module, order)
    assert isinstance(project, nn.Conv2d)
    reorder_input(project, order)


def _reorder_excitation(layer: SqueezeExcitation, order: Tensor) -> None:
    """Reorder the channels that are weighed; those inside come by falling weight."""
    reorder_input(layer.fc1, order)
    reorder(layer.fc2, order)
    strength = layer.fc1.weight.flatten(1).norm(dim=1) * layer.fc2.weight.flatten(1).norm(dim=0)
    inside = strength.argsort(descending=True, stable=True)
    reorder(layer.fc1, inside)
    reorder_input(layer.fc2, inside)
