"""Small spaces to profile, and how."""

from dataclasses import replace

from adapt.architecture import Architecture, Block
from adapt.data.images import InputSize
from adapt.detector.retinanet import DetectorConfig
from adapt.space import BlockSpace, Operation, SearchSpace
from bench.costs.profiler import profile
from bench.latency.backend import OrtTarget
from bench.latency.timing import Protocol

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
    tuple(replace(b, kernels=(3, 5, 7), widths=tuple(range(8, 33, 4))) for b in BLOCKS),
)
QUICK = Protocol(rounds=3, round_ms=0.2, retries=0)
ORT = OrtTarget("ort-cpu")


def profiled(path, target=ORT, *, space=SPACE, size=SIZE, **options):
    """Measure a space into a table."""
    options.setdefault("protocol", QUICK if target == ORT else None)
    return profile(space, DETECTOR, size, path, target, **options)
