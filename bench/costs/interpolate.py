"""Which operations are inferred from others instead of measured, and how? (`profile --grid`)

Interpolation between widths does not work, since latency is no smooth function of them. Runtimes
compute in blocks of 4, 8, 16 or more channels; a width that is no multiple takes another, often far
slower path. On ONNX Runtime's CPU provider an MBConv with 50 input channels takes twice the time of
one with 48.

But an MBConv is a sum of convolutions. Expansion and depthwise convolution depend on the input
width ``i`` and the kernel; the projection depends on ``i`` and the output width ``o``, not on the
kernel. So for one resolution, stride and expansion

    latency(kernel, i, o) = latency(kernel, i, last) - (1 - share(o)) * rise(i),
    rise(i) = latency(smallest kernel, i, last) - latency(smallest kernel, i, first).

``first`` and ``last`` are the smallest and the largest output width. ``share(o)`` says which part
of its rise a row reaches at ``o``; it is measured on a reference row, which is all output widths of
one input width. Measured are

* every kernel and input width at the last output width,
* the smallest kernel and every input width at the first output width,
* two reference rows, of the widest odd and the widest even multiple of the step between input
  widths, since every other width is aligned to blocks.

Operations with a residual have equal input and output widths; all of them are measured. So are all
bottlenecks: each of their convolutions depends on the output width.
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
        base: Smallest kernel, with which rises and reference rows are measured.
        outputs: Output widths of the reference rows, first and last included.
        rows: Input width of the reference row for odd (1) and even (0) multiples of ``step``.
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
            grid: Reference rows are measured at multiples of this, and at both ends.
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
        """Return the input width of the reference row for an input width."""
        return self.rows[c_in // self.step % 2]

    def needs(self, unit: MBConvUnit) -> list[MBConvUnit]:
        """Return the operations from which the latency of one is inferred."""
        first, last = self.outputs[0], self.outputs[-1]
        row = replace(unit, kernel=self.base, c_in=self.row(unit.c_in))
        return [
            replace(unit, c_out=last),
            *(replace(unit, kernel=self.base, c_out=end) for end in (first, last)),
            *(replace(row, c_out=width) for width in self.outputs),
        ]

    def infer(self, unit: MBConvUnit, cost: Callable[[MBConvUnit], float]) -> float:
        """Return the latency of an operation, given those that it :meth:`needs`."""
        at_last, base_first, base_last, *row = map(cost, self.needs(unit))
        if row[-1] > row[0]:
            shares = (np.array(row) - row[0]) / (row[-1] - row[0])
        else:  # the projection is lost in the noise
            shares = np.linspace(0, 1, len(row))
        share = np.interp(unit.c_out, self.outputs, shares)
        return float(at_last - (1 - share) * (base_last - base_first))


def designs(units: Iterable[Unit], grid: int) -> dict[Hashable, Design]:
    """Return the design of each resolution, stride and expansion among the units."""
    groups: dict[Hashable, list[MBConvUnit]] = defaultdict(list)
    for unit in units:
        if isinstance(unit, MBConvUnit) and not unit.residual:
            groups[_group(unit)].append(unit)
    return {key: Design.of(members, grid) for key, members in groups.items()}


def measured_units(units: Sequence[Unit], grid: int) -> list[Unit]:
    """Return the units that are measured, in order; the others are inferred from them.

    Args:
        units: All units of a space.
        grid: 1 measures all of them; otherwise see :class:`Design`.
    """
    if grid == 1:
        return list(units)
    existing, of_group = set(units), designs(units, grid)
    measured: set[Unit] = set()
    for unit in units:
        design = of_group.get(_group(unit))
        if design is None or not isinstance(unit, MBConvUnit):
            measured.add(unit)
        elif existing.issuperset(design.needs(unit)):
            measured.update(design.needs(unit))
        else:  # not every input width meets every output width in this group
            measured.add(unit)
    return [unit for unit in units if unit in measured]


def interpolate(
    measured: Mapping[Unit, UnitCost], units: Sequence[Unit], grid: int
) -> dict[Unit, UnitCost]:
    """Return the costs of the units that were not measured.

    Args:
        measured: Costs of :func:`measured_units`.
        units: All units of the space.
        grid: As in :func:`measured_units`.

    Returns:
        Their costs, with 0 samples in 0 rounds, which marks them as inferred.

    Raises:
        AdaptError: If a unit was not measured from which another one is inferred.
    """
    of_group = designs(units, grid)
    values = {name: {u: asdict(cost)[name] for u, cost in measured.items()} for name in STATISTICS}
    inferred: dict[Unit, UnitCost] = {}
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
        # Each statistic is inferred by itself, and noise could make a median less than a minimum.
        p10, p50, p90 = np.maximum.accumulate([low, *others])[1:].tolist()
        inferred[unit] = UnitCost(low, p10, p50, p90, samples=0, rounds=0)
    return inferred


def _group(unit: Unit) -> Hashable:
    """Return what the operations of one design have in common."""
    if not isinstance(unit, MBConvUnit) or unit.residual:
        return None
    geometry = unit.height, unit.width, unit.stride, unit.expansion
    return *geometry, unit.activation, unit.se
