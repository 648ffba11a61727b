"""Which operations need not be measured, and what do they cost?

Latency is no smooth function of the widths: runtimes work in blocks of 4, 8, 16 or more channels,
and a width that is no multiple takes another, often far slower path (on ONNX Runtime's CPU provider
an MBConv with 50 input channels takes twice the time of one with 48). Interpolation between widths
misses this. What holds is that an MBConv is a sum: expansion and depthwise convolution depend on
the input width, the projection on both, and not on the kernel. So per resolution, stride and
expansion

    latency(kernel, i, o) = latency(kernel, i, last) - (1 - share(o)) * rise(i),
    rise(i) = latency(smallest kernel, i, last) - latency(smallest kernel, i, first),

where first and last are the ends of the output widths, and share(o) is how much of its rise the row
of a reference input width has made at o. Measured are, for every input width, each kernel at the
last output width and the smallest kernel at the first, and two reference rows: the widest odd and
the widest even multiple of the step between input widths, since alignment alternates. Operations
with a residual have one width only, and are all measured.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from adapt.cost.table import UnitCost
from adapt.cost.units import MBConvUnit, Unit, unit_key
from adapt.errors import AdaptError

STATISTICS = ("min_ms", "p10_ms", "p50_ms", "p90_ms")


@dataclass(frozen=True)
class Design:
    """Which of the operations at one resolution, stride and expansion are measured.

    Attributes:
        base: Smallest kernel, of which the rise and the rows are measured.
        outputs: Output widths of the reference rows, both ends included.
        rows: Reference input width of odd (1) and even (0) multiples of ``step``.
        step: Distance between input widths.
    """

    base: int
    outputs: tuple[int, ...]
    rows: Mapping[int, int]
    step: int

    @classmethod
    def of(cls, units: Sequence[MBConvUnit], grid: int) -> "Design":
        """Choose what to measure.

        Args:
            units: Operations of one resolution, stride and expansion.
            grid: Output widths are measured at multiples of this, and at the ends.
        """
        inputs = sorted({unit.c_in for unit in units})
        outputs = sorted({unit.c_out for unit in units})
        step = math.gcd(*(width - inputs[0] for width in inputs)) or 1
        ends = outputs[0], outputs[-1]
        return cls(
            base=min(unit.kernel for unit in units),
            outputs=tuple(width for width in outputs if width % grid == 0 or width in ends),
            rows={width // step % 2: width for width in inputs},
            step=step,
        )

    def row(self, c_in: int) -> int:
        """Return the reference input width of an input width."""
        return self.rows[c_in // self.step % 2]

    def needs(self, unit: MBConvUnit) -> list[MBConvUnit]:
        """Return the operations from which the latency of one follows."""
        first, last = self.outputs[0], self.outputs[-1]
        row = replace(unit, kernel=self.base, c_in=self.row(unit.c_in))
        return [
            replace(unit, c_out=last),
            *(replace(unit, kernel=self.base, c_out=end) for end in (first, last)),
            *(replace(row, c_out=width) for width in self.outputs),
        ]

    def infer(self, unit: MBConvUnit, cost: Callable[[MBConvUnit], float]) -> float:
        """Return the latency of an operation, given those that it :meth:`needs`."""
        own, first, last, *row = map(cost, self.needs(unit))
        if row[-1] > row[0]:
            shares = (np.array(row) - row[0]) / (row[-1] - row[0])
        else:
            shares = np.linspace(0, 1, len(row))
        share = np.interp(unit.c_out, self.outputs, shares)
        return float(own - (1 - share) * (last - first))


def designs(units: Iterable[Unit], grid: int) -> dict[Hashable, Design]:
    """Return the design of each resolution, stride and expansion among the units."""
    groups: dict[Hashable, list[MBConvUnit]] = defaultdict(list)
    for unit in units:
        if isinstance(unit, MBConvUnit) and not unit.residual:
            groups[_group(unit)].append(unit)
    return {key: Design.of(members, grid) for key, members in groups.items()}


def measured_units(units: Sequence[Unit], grid: int) -> list[Unit]:
    """Return the units that are measured, in order; the costs of the others follow from theirs.

    Args:
        units: All units of a space.
        grid: 1 measures all of them; otherwise see :class:`Design`.
    """
    if grid == 1:
        return list(units)
    known, of_group = set(units), designs(units, grid)
    chosen: set[Unit] = set()
    for unit in units:
        design = of_group.get(_group(unit))
        if design is None or not isinstance(unit, MBConvUnit):
            chosen.add(unit)
        elif known.issuperset(design.needs(unit)):
            chosen.update(design.needs(unit))
        else:  # the widths of this group are no full grid
            chosen.add(unit)
    return [unit for unit in units if unit in chosen]


def interpolate(
    measured: Mapping[Unit, UnitCost], units: Sequence[Unit], grid: int
) -> dict[Unit, UnitCost]:
    """Return the costs of the units that were not measured.

    Args:
        measured: Costs of :func:`measured_units`.
        units: All units of the space.
        grid: As in :func:`measured_units`.

    Returns:
        Their costs, with 0 samples in 0 rounds, which marks them as interpolated.

    Raises:
        AdaptError: If a unit that another one needs was not measured.
    """
    of_group = designs(units, grid)
    values = {name: {u: asdict(cost)[name] for u, cost in measured.items()} for name in STATISTICS}
    found: dict[Unit, UnitCost] = {}
    for unit in units:
        if unit in measured or not isinstance(unit, MBConvUnit):
            continue
        design = of_group[_group(unit)]
        lacking = [needed for needed in design.needs(unit) if needed not in measured]
        if lacking:
            raise AdaptError(
                f"'{unit_key(unit)}' cannot be inferred: '{unit_key(lacking[0])}' is missing; "
                "run the same `adapt profile` again, or measure all with --grid 1"
            )
        low, *others = (design.infer(unit, values[name].__getitem__) for name in STATISTICS)
        p10, p50, p90 = np.maximum.accumulate([low, *others])[1:].tolist()
        found[unit] = UnitCost(low, p10, p50, p90, samples=0, rounds=0)
    return found


def _group(unit: Unit) -> Hashable:
    """Return what the operations of one design have in common."""
    if not isinstance(unit, MBConvUnit) or unit.residual:
        return None
    return unit.height, unit.width, unit.stride, unit.expansion
