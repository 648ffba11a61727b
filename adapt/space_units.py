"""Which units must be measured to know the cost of every network of a search space?"""

from collections.abc import Iterator

from adapt.detector import DetectorConfig
from adapt.images import InputSize
from adapt.space import SearchSpace
from adapt.units import (
    P6,
    Lateral,
    MBConvUnit,
    Unit,
    block_resolutions,
    first_unit,
    rest_unit,
    stem_unit,
)


def space_units(space: SearchSpace, detector: DetectorConfig, size: InputSize) -> list[Unit]:
    """Return every distinct unit of every network of a space, in the order of the data flow.

    Args:
        space: The search space, already thinned to its width grid.
        detector: The detector around the backbone.
        size: Size of the detector's input.

    Returns:
        The units of which :func:`adapt.units.detector_units` yields a subset for any network.
    """
    units: list[Unit] = [
        stem_unit(space.stem_width, size),
        first_unit(space.stem_width, space.first_width, size),
    ]
    for index in range(len(space.blocks)):
        units += _block_units(space, index, size)
    units += _pyramid_units(space, detector, size)
    units.append(rest_unit(detector, size))
    return list(dict.fromkeys(units))


def _block_units(space: SearchSpace, index: int, size: InputSize) -> Iterator[MBConvUnit]:
    block = space.blocks[index]
    into, out = _resolutions(space, size)[index : index + 2]
    for op in block.candidates(0):
        for c_out in block.widths:
            for c_in in space.in_widths(index):
                yield MBConvUnit(c_in, c_out, op.kernel, op.expansion, block.stride, False, *into)
            if block.num_ops > 1:
                yield MBConvUnit(c_out, c_out, op.kernel, op.expansion, 1, True, *out)


def _pyramid_units(
    space: SearchSpace, detector: DetectorConfig, size: InputSize
) -> Iterator[Lateral | P6]:
    resolutions = _resolutions(space, size)
    for tap in space.taps:
        for width in space.blocks[tap - 1].widths:
            yield Lateral(width, detector.fpn_width, *resolutions[tap])
    last = space.taps[-1]
    for width in space.blocks[last - 1].widths:
        yield P6(width, detector.fpn_width, *resolutions[last])


def _resolutions(space: SearchSpace, size: InputSize) -> list[tuple[int, int]]:
    return block_resolutions([block.stride for block in space.blocks], size)
