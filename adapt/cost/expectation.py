"""What does the searched detector cost on average? (paper Eq. 5 to 8, for the whole detector)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapt.architecture import Architecture
from adapt.cost.units import (
    P6,
    Lateral,
    MBConvUnit,
    Unit,
    block_resolutions,
    detector_units,
    first_unit,
    rest_unit,
    stem_unit,
)
from adapt.data.images import InputSize
from adapt.detector.retinanet import DetectorConfig
from adapt.space import SKIP, Operation, SearchSpace

# I input widths, K output widths, O operation candidates, L later operations of a block.
CostForm = Literal["exact", "literal"]
UnitCost = Callable[[Unit], float]


def detector_cost(
    architecture: Architecture, detector: DetectorConfig, size: InputSize, cost: UnitCost
) -> float:
    """Return the cost of one detector: the sum over its units."""
    return sum(cost(unit) for unit in detector_units(architecture, detector, size))


def space_units(space: SearchSpace, detector: DetectorConfig, size: InputSize) -> list[Unit]:
    """Return every distinct unit of every network of a space, in the order of the data flow.

    Args:
        space: The search space, already thinned to its width grid.
        detector: The detector around the backbone.
        size: The detector's input.
    """
    units: dict[Unit, None] = {}

    def collect(unit: Unit) -> float:
        units[unit] = None
        return 0.0

    CostModel.build(space, detector, size, collect)
    return list(units)


def operation_unit(
    space: SearchSpace,
    block: int,
    position: int,
    c_in: int,
    c_out: int,
    op: Operation,
    size: InputSize,
) -> MBConvUnit:
    """Return the unit of an MBConv at ``position`` of the block with index ``block``."""
    resolutions = block_resolutions([b.stride for b in space.blocks], size)
    first = position == 0
    return MBConvUnit(
        c_in=c_in,
        c_out=c_out,
        kernel=op.kernel,
        expansion=op.expansion,
        stride=space.blocks[block].stride if first else 1,
        residual=not first,
        height=resolutions[block if first else block + 1][0],
        width=resolutions[block if first else block + 1][1],
    )


@dataclass(frozen=True)
class CostModel:
    """Costs of every choice of a space as tensors (float64; MAdds or milliseconds).

    Attributes:
        fixed: Cost that no choice changes: stem, first block, rest of the detector.
        first: Per block Tensor[I, K, O], the first operation by input width, width, operation.
        later: Per block Tensor[K, O], one later operation; its skip costs 0.
        taps: Per block Tensor[K], laterals and P6 fed by the block (0 where it is not tapped).
    """

    fixed: float
    first: list[Tensor]
    later: list[Tensor]
    taps: list[Tensor]

    @classmethod
    def build(
        cls, space: SearchSpace, detector: DetectorConfig, size: InputSize, cost: UnitCost
    ) -> "CostModel":
        """Look up the cost of every choice.

        Args:
            space: The search space.
            detector: The detector around the backbone.
            size: The detector's input.
            cost: Cost of a unit: :func:`adapt.cost.units.madds`, or the lookup of a cost table.
        """
        fixed = (
            stem_unit(space.stem_width, size),
            first_unit(space.stem_width, space.first_width, size),
            rest_unit(detector, size),
        )
        numbers = range(len(space.blocks))
        return cls(
            fixed=sum(cost(unit) for unit in fixed),
            first=[_first_costs(space, number, size, cost) for number in numbers],
            later=[_later_costs(space, number, size, cost) for number in numbers],
            taps=[_tap_costs(space, number, detector, size, cost) for number in numbers],
        )

    def to(self, device: torch.device) -> "CostModel":
        """Return the same costs on a device."""
        move = [[t.to(device) for t in ts] for ts in (self.first, self.later, self.taps)]
        return CostModel(self.fixed, *move)

    def corrected(self, scale: float, offset: float) -> "CostModel":
        """Return the costs whose sum is ``scale`` times the sum of these, plus ``offset``."""
        scaled = [[scale * t for t in ts] for ts in (self.first, self.later, self.taps)]
        return CostModel(scale * self.fixed + offset, *scaled)

    def expected(
        self,
        ops: Sequence[Sequence[Tensor]],
        widths: Sequence[Tensor],
        form: CostForm = "exact",
    ) -> Tensor:
        """Return the expected cost of the detector.

        ``exact`` sums over (input width, width, operation), so that one-hot probabilities give the
        cost of the derived detector. ``literal`` is Eq. 5 to 8 as printed: the first operation of a
        block is counted at the previous block's widest candidate, and so are the laterals.

        Args:
            ops: Softmax of alpha per block and position, Tensor[O] each.
            widths: Softmax of beta per block, Tensor[K] each.
            form: ``exact`` or ``literal``.
        """
        total = self.taps[0].new_tensor(self.fixed)
        c_in = self.taps[0].new_ones(1)
        for number, (block_ops, block_widths) in enumerate(zip(ops, widths, strict=True)):
            p_ops = [p.double() for p in block_ops]
            c_out = block_widths.double()
            total = total + torch.einsum("i,k,o,iko->", c_in, c_out, p_ops[0], self.first[number])
            for p_op in p_ops[1:]:
                total = total + torch.einsum("k,o,ko->", c_out, p_op, self.later[number])
            following = c_out if form == "exact" else _widest(c_out)
            total = total + following @ self.taps[number]
            c_in = following
        return total


def _widest(probabilities: Tensor) -> Tensor:
    one_hot = torch.zeros_like(probabilities)
    one_hot[-1] = 1
    return one_hot


def _first_costs(space: SearchSpace, number: int, size: InputSize, cost: UnitCost) -> Tensor:
    block = space.blocks[number]
    return torch.tensor(
        [
            [
                [
                    cost(operation_unit(space, number, 0, c_in, c_out, op, size))
                    for op in block.candidates(0)
                ]
                for c_out in block.widths
            ]
            for c_in in space.in_widths(number)
        ],
        dtype=torch.float64,
    )


def _later_costs(space: SearchSpace, number: int, size: InputSize, cost: UnitCost) -> Tensor:
    block = space.blocks[number]
    if block.num_ops == 1:
        return torch.zeros(len(block.widths), len(block.candidates(1)), dtype=torch.float64)
    return torch.tensor(
        [
            [
                0.0 if op == SKIP else cost(operation_unit(space, number, 1, c, c, op, size))
                for op in block.candidates(1)
            ]
            for c in block.widths
        ],
        dtype=torch.float64,
    )


def _tap_costs(
    space: SearchSpace, number: int, detector: DetectorConfig, size: InputSize, cost: UnitCost
) -> Tensor:
    block, tap = space.blocks[number], number + 1
    costs = torch.zeros(len(block.widths), dtype=torch.float64)
    if tap not in space.taps:
        return costs
    resolution = block_resolutions([b.stride for b in space.blocks], size)[tap]
    for index, width in enumerate(block.widths):
        costs[index] += cost(Lateral(width, detector.fpn_width, *resolution))
        if tap == space.taps[-1]:
            costs[index] += cost(P6(width, detector.fpn_width, *resolution))
    return costs
