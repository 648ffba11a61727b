"""Does an artifact of each runtime compute what it should, and in which precision?"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from adapt.runtime import Precision
from bench.doctor.contained import Reading
from bench.doctor.tiny import (
    BATCH,
    Files,
    expected_detections,
    expected_heads,
    images,
    write_detector,
    write_graphs,
)
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.execution import EngineExecution
from export.engine.layers import ORDER
from export.run.inference import Array, unit
from export.run.matching import match_detections
from export.run.onnx_session import PROVIDERS, ort_session
from export.run.runner import open_runner

# Root mean square of the difference of raw heads from eager fp32, by their standard deviation.
HEADS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.3}
# Largest difference of scores and of box coordinates in pixels; the share of detections that must
# agree. Noise makes many of near-equal scores, of which rounding chooses others.
DETECTIONS: dict[Precision, tuple[float, float, float]] = {
    "fp32": (1e-3, 0.1, 0.95),
    "fp16": (0.02, 1.0, 0.85),
    "int8": (0.2, 16.0, 0.4),
}
FEWEST = 10  # detections in an image that make a comparison worth something
# Of the convolutions, or of an engine's layers; reformatting and decoding have other types.
COMPUTED: dict[Precision, float] = {"fp32": 0.8, "fp16": 0.7, "int8": 0.2}
SAME = 1e-3  # of images in batches of other sizes, by the standard deviation; fp16 picks kernels


def check_detector(files: Files) -> list[Reading]:
    """Write the detector and see that it detects."""
    write_detector(files)
    found = expected_detections(files, images())
    return [Reading("detections in an image", min(len(f.scores) for f in found), FEWEST, True)]


def check_export(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Export the detector for a runtime."""
    write_graphs(files, runtime, precision)
    return [Reading("MB", files.graph(runtime, precision, "detections").stat().st_size / 1e6)]


def check_build(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Build its engines."""
    options = BuildOptions(flavour=runtime.replace("-", "_"), timing_cache=files.timing_cache)
    heads, detections = (
        build_engine(
            files.graph(runtime, precision, tail), files.artifact(runtime, precision, tail), options
        )
        for tail in ("heads", "detections")
    )
    title = f"{precision} share of the {heads.layers_of}'s layers"
    readings = [Reading(title, heads.layers.get(precision, 0.0), COMPUTED[precision], True)]
    if precision == "fp32":
        lower = sum(heads.layers.get(name, 0.0) for name in ("int8", "fp16"))
        readings.append(Reading("lower", lower, 0.0))
    return [*readings, Reading("MB with detections", detections.size_bytes / 1e6)]


def check_outputs(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Compare raw heads and detections with eager PyTorch's on the processor in fp32."""
    pixels = images()
    with open_runner(runtime, files.artifact(runtime, precision, "heads")) as runner:
        error = heads_error(expected_heads(files, pixels), runner.heads(pixels))
    with open_runner(runtime, files.artifact(runtime, precision, "detections")) as runner:
        found = runner.infer(pixels)
    score_tol, box_tol, least = DETECTIONS[precision]
    matched = total = 0
    for a, b in zip(expected_detections(files, pixels), found, strict=True):
        matched += match_detections(a, b, score_tol=score_tol, box_tol=box_tol).matched
        total += max(len(a.scores), len(b.scores))
    return [
        Reading("raw heads off by", error, HEADS[precision]),
        Reading("same detections", matched / total, least, True),
    ]


def heads_error(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """Return the larger root mean square of two heads' differences, by the first's deviation."""
    errors = [np.sqrt(np.square(a[name] - b[name]).mean()) / a[name].std() for name in a]
    return float(max(errors)) if np.isfinite(errors).all() else float("inf")


def check_kernels(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Count the convolutions that ONNX Runtime computes on the provider, and in the precision."""
    model = files.graph(runtime, precision, "heads").read_bytes()
    prefix = files.folder / f"{runtime}-{precision}"
    session = ort_session(runtime, model, threads=1, profile=prefix)
    session.run(None, {"images": unit(images())})
    kernels = convolutions(Path(session.end_profiling()), PROVIDERS[runtime])
    here = sum(kernels.values())
    readings = [Reading("convolutions elsewhere", kernels["elsewhere"], 0)]
    # On a processor fp16 is computed in fp32, mostly, and int8 on CUDA is, too.
    must = precision == "fp32" or (precision == "int8") == (runtime == "ort-cpu")
    share = kernels[precision] / max(here, 1)
    limit = 1.0 if must else None
    return [*readings, Reading(f"convolutions in {precision}", share, limit, True)]


TYPES = {"float": "fp32", "float16": "fp16", "int8": "int8", "uint8": "int8"}


def convolutions(profile: Path, provider: str) -> dict[str, int]:
    """Count the convolutions in ONNX Runtime's profile by data type, and those of other providers.

    Args:
        profile: The JSON file of one run.
        provider: The provider that all should be on.
    """
    counts = dict.fromkeys((*ORDER, "elsewhere"), 0)
    for event in json.loads(profile.read_text(encoding="utf-8")):
        content = event.get("args", {})
        if "Conv" not in content.get("op_name", "") or "input_type_shape" not in content:
            continue
        if content.get("provider") != provider:
            counts["elsewhere"] += 1
            continue
        (first, *_), *_ = content["input_type_shape"]
        counts[TYPES.get(first, "other")] += 1
    return counts


def check_batches(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Run batches of 1, 3 and 1 images one after the other."""
    pixels = images(seed=2)
    with open_runner(runtime, files.artifact(runtime, precision, "heads")) as runner:
        before = runner.heads(pixels[:1])
        together = runner.heads(pixels)
        after = runner.heads(pixels[:1])
    first = {name: head[:1] for name, head in together.items()}
    limit = SAME if precision == "fp32" else HEADS[precision]
    return [
        Reading("batch 1, then again", heads_error(before, after), 0.0),
        Reading(f"batch 1 and {BATCH}", heads_error(before, first), limit),
    ]


def check_graph(files: Files, runtime: str, precision: Precision) -> list[Reading]:
    """Compare replays of a CUDA graph with plain runs, for two inputs."""
    engine = EngineExecution.open(files.artifact(runtime, precision, "detections"))
    inputs = [unit(images(seed=seed)) for seed in (3, 4)]
    plain = [_outputs(engine, pixels, engine.run) for pixels in inputs]
    replay = engine.capture()
    # The buffers hold what the second input gave: a replay that does nothing differs at the first.
    replayed = [_outputs(engine, pixels, replay) for pixels in inputs]
    pairs = zip(plain, replayed, strict=True)
    return [
        Reading("graphs captured", float(bool(engine.captured)), 1, at_least=True),
        Reading("outputs that differ", sum((a[n] != b[n]).any() for a, b in pairs for n in a), 0),
    ]


def _outputs(engine: EngineExecution, pixels: Array, run: Callable[[], None]) -> dict[str, Array]:
    engine.feed({"images": pixels})
    run()
    return {name: engine.buffers[name].cpu().numpy() for name in engine.outputs}
