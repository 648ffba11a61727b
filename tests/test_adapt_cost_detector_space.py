import itertools
from dataclasses import replace

from adapt.architecture import Architecture, Block
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.units import MBConvUnit, detector_units
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.space import BlockSpace, SearchSpace

DETECTOR = DetectorConfig(num_classes=3, fpn_width=16, head_depth=1)
SIZE = InputSize(64, 96)


def test_searchable_mbconvs_of_the_paper_space_are_13284():
    space = SearchSpace.load("mobilenet_v2")
    units = DetectorSpace(space, DetectorConfig(80), InputSize(800, 1088)).units()
    first = units[1]
    mbconvs = {replace(u, residual=False) for u in units if isinstance(u, MBConvUnit)} - {first}
    assert len(mbconvs) == 13_284


def all_networks(space):
    """Yield every network of a space."""
    choices = [
        [
            Block(block.stride, width, ops)
            for width in block.widths
            for depth in range(1, block.num_ops + 1)
            for ops in itertools.product(block.candidates(0), repeat=depth)
        ]
        for block in space.blocks
    ]
    for blocks in itertools.product(*choices):
        yield Architecture(space.source, space.stem_width, space.first_width, space.taps, blocks)


def test_space_units_are_exactly_those_of_all_networks_of_the_space():
    # The second block has stride 1: only the residual tells its first operation from the others.
    blocks = BlockSpace(2, 2, (3, 5), (3,), (8, 16)), BlockSpace(2, 1, (3,), (3, 6), (8, 24))
    space = SearchSpace("tiny", "mobilenet_v2", 8, 8, (1, 2), blocks)
    units = DetectorSpace(space, DETECTOR, SIZE).units()
    of_networks = {u for net in all_networks(space) for u in detector_units(net, DETECTOR, SIZE)}
    assert len(units) == len(set(units))
    assert set(units) == of_networks
