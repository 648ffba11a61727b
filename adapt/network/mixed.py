"""How are candidate operations and widths mixed into one block? (paper Eq. 1 and 2)"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adapt.architecture import shape_of
from adapt.network.masks import (
    GateNorm,
    Gates,
    MaskKind,
    gate,
    non_overlapping_masks,
    overlapping_masks,
)
from adapt.network.operations import Bottleneck, ConvOperation, MBConv, conv_operation
from adapt.network.recompute import can_recompute, frozen_forward
from adapt.space import SKIP, BlockSpace, Operation
from adapt.traits import Form, OperationTraits

MOBILE = OperationTraits()  # MBConvs of MobileNetV2
# N images, C widest candidate, K width candidates, O operation candidates, L operations of a block.
Sampled = int | tuple[int, ...]  # one candidate, or several that are weighted among themselves
Paths = list[list[Sampled]]  # per block and position
# What the backward pass computes again instead of keeping it: nothing; the normalised activations
# of frozen candidates (the whole candidate where adapt.network.recompute cannot); every candidate;
# every block.
Recompute = Literal["off", "norms", "operation", "block"]


class MixedOperation(nn.Module):
    """The candidates of one position in a block.

    Args:
        candidates: Operations; :data:`SKIP` passes its input on.
        c_in: Input channels.
        c_out: Output channels.
        stride: Stride of every candidate.
        residual: Whether the others add their input.
        traits: What the others are.
    """

    def __init__(
        self,
        candidates: Sequence[Operation],
        c_in: int,
        c_out: int,
        *,
        stride: int,
        residual: bool,
        traits: OperationTraits = MOBILE,
    ) -> None:
        super().__init__()
        self.candidates = tuple(candidates)
        self.ops = nn.ModuleList(
            nn.Identity()
            if op == SKIP
            else conv_operation(
                shape_of(op, c_in, c_out, stride=stride, residual=residual, traits=traits),
                # Inherited from FNA: while candidates mix, statistics and scale mean nothing.
                affine=False,
                track_running_stats=False,
            )
            for op in self.candidates
        )

    def forward(
        self,
        x: Tensor,
        probabilities: Tensor,
        chosen: Sampled | None,
        reach: Tensor | None = None,
        recompute: Recompute = "off",
    ) -> Tensor:
        """Return the weighted sum of candidates (Eq. 1).

        A single sampled candidate has weight 1. Several sampled ones are weighted by their
        probabilities among themselves.

        Args:
            x: Tensor[N, c_in, H, W].
            probabilities: Tensor[O], softmax of alpha.
            chosen: What was sampled, or None for all.
            reach: The probability that each input channel exists, of bottlenecks each output
                channel; see :meth:`MBConv.branch` and :meth:`Bottleneck.branch`.
            recompute: What is computed again in the backward pass.
        """
        if isinstance(chosen, int):
            op = self.ops[chosen]
            out = x
            if isinstance(op, ConvOperation):
                out = op.finished(op.summed(x, self._branch(op, x, reach, recompute)))
            p = probabilities[chosen]
            # Straight-through estimator of GDAS: 1 + p - p is a weight of 1 with p's gradient.
            return out * (1 + p - p.detach()) if p.requires_grad else out
        if chosen is not None:
            sampled = probabilities[list(chosen)]
            weights = dict(zip(chosen, sampled / sampled.sum(), strict=True))
        else:
            weights = dict(enumerate(probabilities))
        return self._sum(x, weights, reach, recompute)

    def _sum(
        self, x: Tensor, weights: dict[int, Tensor], reach: Tensor | None, recompute: Recompute
    ) -> Tensor:
        """Return the weighted sum of the candidates with these indices."""
        total: Tensor | None = None
        input_weights: list[Tensor] = []  # of residuals and of the skip, which add x itself
        for index, weight in weights.items():
            op, out = self.ops[index], None
            if isinstance(op, MBConv):
                out = self._branch(op, x, reach, recompute, weight)
            elif isinstance(op, Bottleneck):  # not linear: its input cannot be added once for all
                out = weight * op.finished(op.summed(x, self._branch(op, x, reach, recompute)))
            if out is not None:
                # A running sum: stacking would hold all candidates twice.
                total = out if total is None else total + out
            if isinstance(op, nn.Identity) or (isinstance(op, MBConv) and op.shape.residual):
                input_weights.append(weight)
        if input_weights:
            passed_on = torch.stack(input_weights).sum() * x
            total = passed_on if total is None else total + passed_on
        assert total is not None
        return total

    def _branch(
        self,
        op: ConvOperation,
        x: Tensor,
        reach: Tensor | None,
        recompute: Recompute,
        scale: Tensor | None = None,
    ) -> Tensor:
        frozen = not any(p.requires_grad for p in op.parameters())
        if recompute in ("off", "block") or not torch.is_grad_enabled():
            return op.branch(x, reach, scale)
        if recompute == "norms":
            if not frozen:
                return op.branch(x, reach, scale)
            if reach is None and can_recompute(op):
                return frozen_forward(op.conv, x, scale)
        out: Tensor = checkpoint(
            op.branch, x, reach, scale, use_reentrant=False, preserve_rng_state=False
        )
        return out


def _operations(chain: nn.Module) -> list[MixedOperation]:
    return cast("list[MixedOperation]", list(cast(nn.ModuleList, chain)))


def _mixed_operations(
    block: BlockSpace, c_in: int, c_out: int, traits: OperationTraits
) -> nn.ModuleList:
    return nn.ModuleList(
        MixedOperation(
            block.candidates(position),
            c_in if position == 0 else c_out,
            c_out,
            stride=block.stride if position == 0 else 1,
            residual=position > 0,
            traits=traits,
        )
        for position in range(block.num_ops)
    )


class MixedBlock(nn.Module, ABC):
    """All operations and widths of one block of a space; its output is as wide as the widest.

    Called with the output of the block before, the softmax of alpha per position, the softmax of
    beta, per position what was sampled (None for all candidates), the reach of the block before,
    and what is computed again in the backward pass.

    Attributes:
        gates_operations: Whether the output of every operation is gated, or only the block's.
        form: What the operations are.
    """

    reach_masks: Tensor

    def __init__(self, widths: Sequence[int], form: Form, *, gates_operations: bool) -> None:
        super().__init__()
        self.form: Form = form
        self.gates_operations = gates_operations
        self.register_buffer("reach_masks", overlapping_masks(widths), persistent=False)

    @abstractmethod
    def chains(self) -> list[list[MixedOperation]]:
        """Return the sequences of operations that the block consists of."""

    @abstractmethod
    def chain(self, width: int) -> list[MixedOperation]:
        """Return the sequence of operations that computes the width with this index."""

    @abstractmethod
    def factors(self, width_probabilities: Tensor) -> Tensor:
        """Return Tensor[C], what the channels of the output are multiplied by."""

    def reach(self, width_probabilities: Tensor) -> Tensor | None:
        """Return Tensor[C], the probability that each output channel exists; None to use all."""
        return width_probabilities @ self.reach_masks

    def first_reach(self, before: Tensor | None, width_probabilities: Tensor) -> Tensor | None:
        """Return the reach that decides which hidden channels the first operation has.

        Those of an MBConv are counted by its input, those of a bottleneck by its output.

        Args:
            before: That of the block before.
            width_probabilities: Softmax of beta.
        """
        if self.form == "mbconv":
            return before
        return self.reach(width_probabilities) if self.gates_operations else None


class SharedBlock(MixedBlock):
    """Mixed block (Eq. 2): one block at the widest candidate, its channels gated.

    Non-overlapping masks gate the output of the block. Overlapping masks gate the output of every
    operation, and the hidden channels that belong to gated inputs, as FBNetV2 gates its layers: a
    one-hot beta is then the narrow block, whose later operations read none of the channels it
    lacks. With ``gates="block"`` overlapping masks gate the output of the block only.
    """

    masks: Tensor

    def __init__(
        self,
        block: BlockSpace,
        c_in: int,
        mask: MaskKind,
        gate_norm: GateNorm,
        gates: Gates = "operation",
        traits: OperationTraits = MOBILE,
    ) -> None:
        overlapping = mask == "overlapping"
        gates_operations = overlapping and gates == "operation"
        super().__init__(block.widths, traits.form, gates_operations=gates_operations)
        self.operations = _mixed_operations(block, c_in, block.widths[-1], traits)
        masks = (overlapping_masks if overlapping else non_overlapping_masks)(block.widths)
        self.register_buffer("masks", masks, persistent=False)
        self.gate_norm: GateNorm = gate_norm

    def forward(
        self,
        x: Tensor,
        op_probabilities: Sequence[Tensor],
        width_probabilities: Tensor,
        chosen: Sequence[Sampled | None],
        reach: Tensor | None = None,
        recompute: Recompute = "off",
    ) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, C, H', W']``."""
        factors = self.factors(width_probabilities)[:, None, None]
        reach = self.first_reach(reach, width_probabilities)
        for operation, probabilities, choice in zip(
            self.operations, op_probabilities, chosen, strict=True
        ):
            x = operation(x, probabilities, choice, reach, recompute)
            if self.gates_operations:
                x, reach = x * factors, self.reach(width_probabilities)
        return x if self.gates_operations else x * factors

    def chain(self, width: int) -> list[MixedOperation]:
        """Return the one chain: a width is its first channels."""
        return self.chains()[0]

    def chains(self) -> list[list[MixedOperation]]:
        """Return the one chain."""
        return [_operations(self.operations)]

    def factors(self, width_probabilities: Tensor) -> Tensor:
        """Return Tensor[C], the gate of every channel."""
        return gate(self.masks, width_probabilities, self.gate_norm)

    def reach(self, width_probabilities: Tensor) -> Tensor | None:
        """Return Tensor[C] if operations are gated, see :class:`MixedBlock`; None otherwise."""
        return super().reach(width_probabilities) if self.gates_operations else None


class IndividualBlocks(MixedBlock):
    """Mixed block of separate blocks, one per width, zero-padded and summed (Table III)."""

    def __init__(self, block: BlockSpace, c_in: int, traits: OperationTraits = MOBILE) -> None:
        super().__init__(block.widths, traits.form, gates_operations=False)
        self.widest = block.widths[-1]
        self.blocks = nn.ModuleList(
            _mixed_operations(block, c_in, width, traits) for width in block.widths
        )

    def forward(
        self,
        x: Tensor,
        op_probabilities: Sequence[Tensor],
        width_probabilities: Tensor,
        chosen: Sequence[Sampled | None],
        reach: Tensor | None = None,
        recompute: Recompute = "off",
    ) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, C, H', W']``."""
        padded = []
        for weight, chain in zip(width_probabilities, self.chains(), strict=True):
            out, in_reach = x, self.first_reach(reach, width_probabilities)
            for operation, probabilities, choice in zip(
                chain, op_probabilities, chosen, strict=True
            ):
                out = operation(out, probabilities, choice, in_reach, recompute)
                in_reach = None  # inside a chain all channels are of its own width
            padded.append(weight * F.pad(out, (0, 0, 0, 0, 0, self.widest - out.shape[1])))
        return torch.stack(padded).sum(0)

    def chain(self, width: int) -> list[MixedOperation]:
        """Return the chain of a width."""
        return self.chains()[width]

    def chains(self) -> list[list[MixedOperation]]:
        """Return the chain of every width."""
        return [_operations(chain) for chain in self.blocks]

    def factors(self, width_probabilities: Tensor) -> Tensor:
        """Return Tensor[C], the summed weight of all chains that have the channel."""
        return width_probabilities @ self.reach_masks
