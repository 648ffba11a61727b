"""What else is to be said of the numbers of a benchmark? (pace, warm-up, doubts, other tools)"""

from collections.abc import Mapping
from typing import Any

from bench.networks.footprint import CALLS, PROCESSES
from bench.networks.measure import BenchResult, Entry


def pace(result: BenchResult) -> str:
    """Say how calls follow each other, and which came late."""
    every_ms = result.protocol.every_ms
    if not every_ms:
        return "back-to-back calls"
    late = ", ".join(
        f"{entry.latency.late} of {entry.latency.samples} of {entry.name}"
        for entry in result.entries
        if entry.latency.late
    )
    return (
        f"a call every {every_ms:g} ms (late, because the last one took longer: {late or 'none'})"
    )


def warm_up(result: BenchResult) -> str:
    """Say how often every file was called before."""
    calls = ", ".join(
        f"{entry.latency.warm_up} of {entry.name}"
        + ", which had not settled" * (not entry.latency.settled)
        for entry in result.entries
    )
    return f"Warm-up, untimed calls until they took equally long: {calls}."


def remarks(result: BenchResult) -> list[str]:
    """Say what is to be known of single files, and of columns that not every report has."""
    return [*unreliable(result), *_peers(result), *_stages(result), *_footprints(result)]


def unreliable(result: BenchResult) -> list[str]:
    """Say of every median that is no number to go by why it is none."""
    return [
        f"UNRELIABLE is {entry.name}: {', '.join(entry.latency.doubts)}."
        for entry in result.entries
        if not entry.latency.reliable
    ]


def _peers(result: BenchResult) -> list[str]:
    """Say of every file of another tool how it was understood, and what was timed."""
    return [_peer(entry) for entry in result.entries if entry.is_peer]


def _peer(entry: Entry) -> str:
    settings = {name: told for name, told in entry.runner["peer"].items() if name != "classes"}
    form = settings["form"]
    normalisation = (
        "normalisation is inside of its graph, as of those of adapt"
        if form == "torchvision"
        else "normalisation, which is inside of the graphs of adapt, is not included"
    )
    suppresses = form in ("nms", "torchvision")
    suppression = "The thresholds of its suppression are those of its export. "
    return (
        f"{entry.name} was written by another tool ({pairs(settings)}). Its latency is that of the "
        f"network ({entry.network_ms or 0:.2f} ms alone, p50) and of what makes its outputs "
        f"detections, by PyTorch on the processor; {normalisation}. "
        f"{suppression if suppresses else ''}"
        "Its parameters are the numbers in its graph."
    )


def _stages(result: BenchResult) -> list[str]:
    """Say where the time of every detector goes, as far as its runtime tells."""
    told = [
        f"{entry.name} {', '.join(f'{name} {ms:.2f}' for name, ms in entry.stages_ms.items())}"
        for entry in result.entries
        if entry.stages_ms
    ]
    if not told:
        return []
    return [
        "Stages in ms of a call, by ONNX Runtime's own profile of its nodes, apart from the rounds "
        f"and a little slower for the writing: {'; '.join(told)}."
    ]


def _footprints(result: BenchResult) -> list[str]:
    if not any(entry.footprint for entry in result.entries):
        return []
    return [
        f"Load time and memory: of {PROCESSES} processes that only load the file and call it "
        f"{CALLS} times. Load ms is the median time in which a started runtime loads it, its "
        "optimisation included. Host MB is how far the resident memory rose at most meanwhile, "
        "GPU MB what NVML says that the used memory of the GPU grew by."
    ]


def pairs(values: Mapping[str, Any]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
