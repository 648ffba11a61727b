"""Does an engine compute on this GPU what its ONNX file does on the processor?"""

import math
from pathlib import Path

from adapt.errors import AdaptError
from export.run.inference import Runner
from export.run.matching import MatchTotals, Tolerances, largest
from export.run.parity import NamedImages, ParityReport
from export.run.runner import OrtRunner, open_runner, usual_runtime


def verify_engine(plan_path: Path, onnx_path: Path, images: NamedImages) -> ParityReport:
    """Run an engine and compare it with the ONNX file that it was built from.

    In fp16 and int8 the two round differently, so only an engine that is broken is refused: one
    whose heads overflow, or most of whose detections are others.

    Args:
        plan_path: The engine, on a GPU that it was built for.
        onnx_path: The ONNX file.
        images: As many as fill whole batches of the file, unless its batch is dynamic.

    Raises:
        AdaptError: If the engine does not compute what its file does.
    """
    with (
        OrtRunner("ort-cpu", onnx_path) as onnx,
        open_runner(usual_runtime(plan_path), plan_path) as engine,
    ):
        report = _compare(onnx, engine, images)
    if not (report.passed if onnx.precision == "fp32" else _mostly_same(report)):
        raise AdaptError(
            f"{plan_path.name} does not compute what {onnx_path.name} computes on ort-cpu: "
            f"{report.reasons[0]}; try another --precision or --level, and report this with the "
            "versions that `adapt doctor` prints"
        )
    return report


def _compare(onnx: Runner, engine: Runner, images: NamedImages) -> ParityReport:
    number, step = len(images.pixels), onnx.batch
    batches = [images.pixels[start : start + step] for start in range(0, number, step)]
    tolerances = Tolerances.of(onnx.precision)
    if onnx.tail == "none":
        pairs = [(onnx.heads(batch), engine.heads(batch)) for batch in batches]
        heads = {name: max(largest(a[name] - b[name]) for a, b in pairs) for name in pairs[0][0]}
        return ParityReport(number, tolerances, None, heads, {})
    totals = MatchTotals(onnx.info.detector, tolerances)
    names = iter(images.names or map(str, range(number)))
    for batch in batches:
        for a, b in zip(onnx.infer(batch), engine.infer(batch), strict=True):
            totals.add(next(names), a, b)
    return ParityReport(number, tolerances, totals.total, {}, totals.worst)


def _mostly_same(report: ParityReport) -> bool:
    match = report.match
    if match is None:
        return all(map(math.isfinite, report.heads.values()))
    return match.matched + match.excused >= match.missing + match.extra
