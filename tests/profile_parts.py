"""Small spaces to profile, and how."""

import pickle
from dataclasses import replace

from core_parts import once

from adapt.architecture import Architecture, Block
from adapt.cost.detector_space import DetectorSpace
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.progress import silent
from adapt.space import BlockSpace, Operation, SearchSpace
from bench.costs.profiler import profile, unit_protocol
from bench.costs.selection import EVERYTHING
from bench.latency.backend import OrtBackend
from bench.latency.timing import Protocol
from bench.latency.workers import Measurement

SIZE = InputSize(64, 64)
DETECTOR = DetectorConfig(num_classes=2, fpn_width=8, head_depth=0, candidates=20)
BLOCKS = tuple(BlockSpace(2, 2, (3,), (3,), (8, 16)) for _ in range(4))
SPACE = SearchSpace("tiny", "mobilenet_v2", 8, 8, (2, 3, 4), BLOCKS)
NETWORK = Architecture(
    "mobilenet_v2", 8, 8, (2, 3, 4), tuple(Block(2, 16, (Operation(3, 3),) * 2) for _ in BLOCKS)
)
# Enough widths and kernels for most of them to be inferred.
WIDE = SearchSpace(
    "wide",
    "mobilenet_v2",
    8,
    8,
    (2, 3, 4),
    tuple(replace(b, kernels=(3, 7), widths=tuple(range(8, 33, 4))) for b in BLOCKS),
)
QUICK = Protocol(rounds=3, round_ms=0.2, retries=0)
ORT = OrtBackend("ort-cpu")


DETECTORS, WIDE_DETECTORS = (DetectorSpace(space, DETECTOR, SIZE) for space in (SPACE, WIDE))


def measurement(backend, protocol=None, **options):
    """Measure quickly on this processor, and as usual on a simulated device."""
    protocol = protocol or (QUICK if backend == ORT else unit_protocol(backend))
    return Measurement(backend, protocol, **options)


def measured_really(path):
    """Measure the space on this processor once for all files of tests; return what was told."""
    told = path.with_suffix(".pickle")
    once(path, lambda path: told.write_bytes(pickle.dumps(profiled(path))))
    return pickle.loads(told.read_bytes())


def profiled(
    path, backend=ORT, *, space=SPACE, size=SIZE, part=EVERYTHING, progress=silent, **options
):
    """Measure a space into a table."""
    detectors, how = DetectorSpace(space, DETECTOR, size), measurement(backend, **options)
    return profile(detectors, path, how, part, progress=progress)
