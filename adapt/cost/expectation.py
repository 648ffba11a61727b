"""What does the searched detector cost on average? (paper Eq. 5 to 8, for the whole detector)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapt.architecture import Architecture
from adapt.cost.units import Unit, detector_units
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig

# I input widths, K output widths, O operation candidates.
CostForm = Literal["exact", "literal"]
CostFunction = Callable[[Unit], float]


def detector_cost(
    architecture: Architecture, detector: DetectorConfig, size: InputSize, cost: CostFunction
) -> float:
    """Return the cost of one detector: the sum over its units."""
    return sum(cost(unit) for unit in detector_units(architecture, detector, size))


@dataclass(frozen=True)
class CostModel:
    """Costs of every choice of a search as tensors (float64; MAdds or milliseconds).

    Made by :meth:`adapt.cost.detector_space.DetectorSpace.costs`.

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

    def to(self, device: torch.device) -> "CostModel":
        """Return the same costs on a device."""
        move = [[t.to(device) for t in ts] for ts in (self.first, self.later, self.taps)]
        return CostModel(self.fixed, *move)

    def corrected(self, scale: float, offset: float) -> "CostModel":
        """Return the costs whose sum is ``scale`` times the sum of these, plus ``offset``."""
        scaled = [[scale * t for t in ts] for ts in (self.first, self.later, self.taps)]
        return CostModel(scale * self.fixed + offset, *scaled)

    def unchanging(self, form: CostForm = "exact") -> float:
        """Return the part of :meth:`expected` that no choice changes.

        It is the fixed cost, and in the ``literal`` form also what the pyramid reads, which is
        counted at the widest candidates there.
        """
        constant = 0.0 if form == "exact" else sum(float(tap[-1]) for tap in self.taps)
        return self.fixed + constant

    def expected(
        self,
        ops: Sequence[Sequence[Tensor]],
        widths: Sequence[Tensor],
        form: CostForm = "exact",
    ) -> Tensor:
        """Return the expected cost of the detector.

        ``exact`` sums over (input width, width, operation), so that one-hot probabilities give the
        cost of the derived detector. ``literal`` sums the searched blocks as Eq. 5 to 8 do: what
        reads a block's output (the next block's first operation, the pyramid) is counted at its
        widest candidate. The rest of the detector, which Eq. 5 leaves out, is a constant in it.

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
            c_in = c_out if form == "exact" else _widest(c_out)  # of what reads this block
            total = total + c_in @ self.taps[number]
        return total


def _widest(probabilities: Tensor) -> Tensor:
    one_hot = torch.zeros_like(probabilities)
    one_hot[-1] = 1
    return one_hot
