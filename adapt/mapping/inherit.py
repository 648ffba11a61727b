"""How does one network of a search space inherit the supernet's trained weights?"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.ops import SqueezeExcitation

from adapt.architecture import Choices
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector
from adapt.network.backbone import Backbone
from adapt.network.mixed import MixedBlock
from adapt.network.operations import Bottleneck, ConvOperation, hidden_reach, squeezed_reach
from adapt.network.supernet import Supernet


@torch.no_grad()
def inherit_detector(source: RetinaNet, choices: Choices, config: DetectorConfig) -> RetinaNet:
    """Build the detector of a network, with the weights of a supernet's detector.

    It gets the chosen operations and the first channels of everything. The factors by which the
    supernet gates a block's output are multiplied into the weights that read that output: of the
    next block's first operation, the pyramid's lateral and the convolution of P6. A supernet's
    BatchNorms have neither scale and shift nor running statistics to inherit;
    :func:`adapt.detector.statistics.recalibrate` measures the statistics.

    In training mode the detector then computes what the supernet computes with ``paths`` set to the
    chosen operations, if the supernet had no channels beyond the chosen widths. Two exceptions
    vanish where beta is one-hot:

    * Overlapping masks that gate every operation: a residual operation adds its gated input in the
      supernet, its ungated input here.
    * Individual blocks: only the block of the chosen width is taken, its channels scaled by the
      weight of all blocks that have them.

    Args:
        source: Detector around a :class:`Supernet`.
        choices: The network.
        config: The detector's configuration.
    """
    supernet = cast(Supernet, source.backbone.body)
    architecture = choices.architecture(supernet.space)
    target = build_detector(Backbone(architecture), config)
    body = target.backbone.body
    body.features[0].load_state_dict(supernet.stem.state_dict())
    body.features[1].load_state_dict(supernet.first.state_dict())
    gates = _inherit_blocks(supernet, body, choices)
    taps = architecture.taps[config.unread_taps :]
    _inherit_pyramid(source, target, [gates[tap - 1] for tap in taps])
    target.head.load_state_dict(source.head.state_dict())
    return target


def _inherit_blocks(supernet: Supernet, body: Backbone, choices: Choices) -> list[Tensor]:
    """Fill all blocks; return the factors of each one's output that its readers have to fold."""
    _, probabilities = supernet.probabilities()
    layers = iter(cast("list[ConvOperation]", list(body.features)[2:]))
    factors = torch.ones(supernet.space.first_width)
    reach: Tensor | None = None
    block_factors = []
    for block, ops, width, p in zip(
        supernet.blocks, choices.ops, choices.widths, probabilities, strict=True
    ):
        assert isinstance(block, MixedBlock)
        gates, gated_reach = block.factors(p), block.reach(p)
        op_gates = gates if block.gates_operations else torch.ones_like(gates)
        reach = block.first_reach(reach, p)
        for mixed, index in zip(block.chain(width), ops, strict=True):
            op = mixed.ops[index]
            if isinstance(op, ConvOperation):
                copy_operation(op, next(layers), factors, reach)
                factors, reach = op_gates, gated_reach if block.gates_operations else None
            else:  # the output of a skip is gated as well
                factors = factors * op_gates
        factors, reach = factors if block.gates_operations else gates, gated_reach
        block_factors.append(factors)
    return block_factors


@torch.no_grad()
def copy_operation(
    source: ConvOperation, target: ConvOperation, factors: Tensor, reach: Tensor | None = None
) -> None:
    """Copy the first channels of an operation that differs in its widths alone.

    Args:
        source: The wide operation.
        target: The narrow one.
        factors: Tensor[c_in], gates of the input in the supernet, folded into the weights that read
            it.
        reach: By which the supernet multiplies hidden channels, folded into the weights that read
            them, and into those of squeeze-excitation; see :meth:`MBConv.branch` and
            :meth:`Bottleneck.branch`.
    """
    for from_conv, to_conv in zip(_convs(source), _convs(target), strict=True):
        out, into = to_conv.weight.shape[:2]
        to_conv.weight.copy_(from_conv.weight[:out, :into])
        if to_conv.bias is not None and from_conv.bias is not None:
            to_conv.bias.copy_(from_conv.bias[:out])
    shape, factors = target.shape, factors[: target.shape.c_in]
    for first in target.input_readers():
        # A depthwise convolution has its input channels on the axis of its output channels.
        first.weight.mul_(factors.view((1, -1, 1, 1) if first.groups == 1 else (-1, 1, 1, 1)))
    if reach is None:
        return
    if isinstance(target, Bottleneck):
        hidden = hidden_reach(shape, reach[: shape.c_out])
    else:
        hidden = hidden_reach(shape, reach[: shape.c_in])
        for module in target.modules():
            if isinstance(module, SqueezeExcitation):
                module.fc1.weight.mul_(hidden.view(1, -1, 1, 1))
                squeezed = squeezed_reach(target.shape, reach[: shape.c_in])
                module.fc2.weight.mul_(squeezed.view(1, -1, 1, 1))
    for conv in target.hidden_readers():
        conv.weight.mul_(hidden.view(1, -1, 1, 1))


def _convs(op: ConvOperation) -> list[nn.Conv2d]:
    return [module for module in op.modules() if isinstance(module, nn.Conv2d)]


def _inherit_pyramid(source: RetinaNet, target: RetinaNet, gates: Sequence[Tensor]) -> None:
    """Copy the feature pyramid, and fold the gates of the taps into the weights that read them."""
    state = source.backbone.fpn.state_dict()
    narrow = target.backbone.fpn.state_dict()
    readers = {f"inner_blocks.{place}.0.weight": factors for place, factors in enumerate(gates)}
    readers["extra_blocks.p6.weight"] = gates[-1]
    for name, factors in readers.items():
        width = narrow[name].shape[1]
        state[name] = state[name][:, :width] * factors[:width].view(1, -1, 1, 1)
    target.backbone.fpn.load_state_dict(state)
