"""Which detectors can a search choose, and what does each of its choices cost?"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapt.architecture import shape_of
from adapt.cost.expectation import CostFunction, CostModel
from adapt.cost.units import (
    P6,
    Lateral,
    OperationUnit,
    Unit,
    block_resolutions,
    detector_units,
    fixed_units,
    operation_unit,
    rest_unit,
)
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.sources import source_of
from adapt.space import SKIP, Operation, SearchSpace
from adapt.traits import traits_of


@dataclass(frozen=True)
class DetectorSpace:
    """Every detector a search can choose: which backbones, in which detector, on which input.

    Attributes:
        space: Search space of the backbone, already thinned to its width grid.
        detector: The detector around the backbone.
        size: The detector's input.
    """

    space: SearchSpace
    detector: DetectorConfig
    size: InputSize

    def units(self) -> list[Unit]:
        """Return every distinct unit of every detector, in the order :meth:`costs` asks for it."""
        units: dict[Unit, None] = {}

        def collect(unit: Unit) -> float:
            units[unit] = None
            return 0.0

        self.costs(collect)
        return list(units)

    def source_units(self) -> list[Unit]:
        """Return every distinct unit of the source's own detector, candidates or not.

        It is what every adapted detector is compared with. Empty if the space adapts no source.
        """
        source = source_of(self.space)
        units = detector_units(source, self.detector, self.size) if source else ()
        return list(dict.fromkeys(units))

    def costs(self, cost: CostFunction) -> CostModel:
        """Return the cost of every choice.

        Args:
            cost: Cost of a unit: :func:`adapt.cost.units.madds`, or
                :meth:`adapt.cost.table.CostTable.lookup`.
        """
        fixed = [*fixed_units(self.space, self.size), rest_unit(self.detector, self.size)]
        blocks = range(len(self.space.blocks))
        return CostModel(
            fixed=sum(cost(unit) for unit in fixed),
            first=[self._first_costs(block, cost) for block in blocks],
            later=[self._later_costs(block, cost) for block in blocks],
            taps=[self._tap_costs(block, cost) for block in blocks],
        )

    @cached_property
    def _resolutions(self) -> list[tuple[int, int]]:
        return block_resolutions(self.space, self.size)

    def _first_costs(self, number: int, cost: CostFunction) -> Tensor:
        """Return Tensor[I, K, O], the first operation of a block."""
        block = self.space.blocks[number]
        return torch.tensor(
            [
                [
                    [
                        cost(self._first_operation(number, c_in, c_out, op))
                        for op in block.candidates(0)
                    ]
                    for c_out in block.widths
                ]
                for c_in in self.space.in_widths(number)
            ],
            dtype=torch.float64,
        )

    def _first_operation(self, number: int, c_in: int, c_out: int, op: Operation) -> OperationUnit:
        shape = shape_of(
            op,
            c_in,
            c_out,
            stride=self.space.blocks[number].stride,
            residual=False,
            traits=traits_of(self.space.source).operations(number),
        )
        return operation_unit(shape, self._resolutions[number])

    def _later_costs(self, number: int, cost: CostFunction) -> Tensor:
        """Return Tensor[K, O], any other operation of a block: they all have the same shape."""
        block = self.space.blocks[number]
        if block.num_ops == 1:
            return torch.zeros(len(block.widths), len(block.candidates(1)), dtype=torch.float64)
        return torch.tensor(
            [
                [
                    0.0 if op == SKIP else cost(self._later_operation(number, width, op))
                    for op in block.candidates(1)
                ]
                for width in block.widths
            ],
            dtype=torch.float64,
        )

    def _later_operation(self, number: int, width: int, op: Operation) -> OperationUnit:
        traits = traits_of(self.space.source).operations(number)
        shape = shape_of(op, width, width, stride=1, residual=True, traits=traits)
        return operation_unit(shape, self._resolutions[number + 1])

    def _tap_costs(self, number: int, cost: CostFunction) -> Tensor:
        """Return Tensor[K], the convolutions of the pyramid that read a block's output."""
        block, tap = self.space.blocks[number], number + 1
        costs = torch.zeros(len(block.widths), dtype=torch.float64)
        if tap not in self.space.taps:
            return costs
        read_by_lateral = self.space.taps.index(tap) >= self.detector.unread_taps
        for index, width in enumerate(block.widths):
            read = width, self.detector.fpn_width, *self._resolutions[tap]
            if read_by_lateral:
                costs[index] += cost(Lateral(*read))
            if tap == self.space.taps[-1]:
                costs[index] += cost(P6(*read))
        return costs
