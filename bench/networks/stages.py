"""Where in a detector does the time go? (ONNX Runtime's own profile, by the names of nodes)"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from export.graph.onnx_file import load_onnx
from export.run.inference import Array, in_type
from export.run.onnx_session import bound_call, ort_session
from export.run.pair import deployed_header

STAGES = ("backbone", "pyramid", "heads", "decoding and NMS")
# The module that a node is named after begins so; the longest that fits counts.
_MODULES = {
    "features.backbone.fpn": "pyramid",
    "features": "backbone",
    "postprocess.head": "heads",
    "postprocess.boxes": "heads",  # the second stage, if there is one
    "head": "heads",
}
_OF_RUNTIME = re.compile(r"(_nchwc|_token_\d+|/\w+Fusion)$")  # what it adds to the name of a node
WARM_UP, CALLS = 3, 10
TOLD = 0.9  # share of the time whose nodes must be known by name


def stage_times(file: Path, threads: int, images: Array) -> dict[str, float] | None:
    """Return how many milliseconds of a call each of :data:`STAGES` takes on ONNX Runtime's CPU.

    Every node's time is the median of several calls; to write them down costs time too, so that
    the sum is not the latency.

    Args:
        file: An ONNX file that `adapt export` wrote.
        threads: CPU threads of one inference.
        images: uint8 ``[B, 3, H, W]``.

    Returns:
        None if the runtime has renamed so many nodes that they cannot be told apart.
    """
    stages, pixels = _stage_of_names(load_onnx(file)), deployed_header(file)["pixels"]
    with tempfile.TemporaryDirectory() as folder:
        session = ort_session("ort-cpu", file.read_bytes(), threads, profile=Path(folder) / "calls")
        call = bound_call(session, {"images": in_type(images, pixels)}, "ort-cpu")
        for _ in range(WARM_UP + CALLS):
            call()
        profile = Path(session.end_profiling()).read_text(encoding="utf-8")
    return summed(json.loads(profile), stages)


def summed(profile: list[dict[str, Any]], stages: Mapping[str, str]) -> dict[str, float] | None:
    """Return milliseconds by stage of a profile, given the stage of every name in the graph."""
    of_stage, told, before = dict.fromkeys(STAGES, 0.0), 0.0, STAGES[0]
    for name, milliseconds in _nodes(profile):
        stage = _stage(name, stages)
        # What the runtime has put in between, such as a change of layout, serves what ran before.
        before = stage or before
        of_stage[before] += milliseconds
        told += milliseconds if stage else 0.0
    return of_stage if told >= TOLD * sum(of_stage.values()) > 0 else None


def _nodes(profile: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield the name of every node that ran, in order, and its median time in milliseconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in profile:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000)
    for name, milliseconds in times.items():
        yield name, median(milliseconds[-CALLS:])


def _stage(name: str, stages: Mapping[str, str]) -> str | None:
    return stages.get(name) or stages.get(_OF_RUNTIME.sub("", name))


def _stage_of_names(model: onnx.ModelProto) -> dict[str, str]:
    """Return the stage of every node, by its name and by those of its outputs.

    ONNX Runtime names fused nodes after their last output.
    """
    stages = {}
    for node in model.graph.node:
        stage = _stage_of_module(node.name.rpartition("/")[0])
        stages.update(dict.fromkeys((node.name, *node.output), stage))
    return stages


def _stage_of_module(module: str) -> str:
    fitting = [start for start in _MODULES if f"{module}.".startswith(f"{start}.")]
    return _MODULES[max(fitting, key=len)] if fitting else STAGES[-1]
