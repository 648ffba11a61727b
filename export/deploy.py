"""What does `adapt export` do, from a trained detector to ONNX file, parity report and engine?"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import RetinaNet

from adapt.artifacts import file_hash, make_place, write_json
from adapt.command_line import warn
from adapt.data.images import find_images
from adapt.detector.file import DetectorInfo, load_detector, read_detector_info
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Int8For, Precision, Tail
from export.engine.build import build_engine
from export.engine.configure import BuildOptions, check_candidates
from export.engine.installed import load_tensorrt
from export.graph.canvas import Canvas, Orientations, planned
from export.graph.detector import export_detector, read_onnx_info
from export.graph.options import GraphOptions, ImageInput, Pixels
from export.graph.precision import FloatPrecision, int8_for, rest_precision
from export.graph.two_stage import check_graph
from export.quantize import SENSITIVITY_BATCHES, Quantizer
from export.run.engine_parity import verify_engine
from export.run.fits import compare_fits
from export.run.matching import Tolerances
from export.run.parity import ParityReport, verify_export
from export.run.runner import TorchRunner, open_runner
from export.samples import (
    CALIBRATION_IMAGES,
    VERIFY_IMAGES,
    Samples,
    spread,
    training_images,
)


@dataclass(frozen=True)
class Deployment:
    """Which files to write for a detector, and how.

    Attributes:
        tail: How the graph ends; by default ``tensor-nms`` for an engine, ``onnx-nms`` without.
        precision: ``fp32``, ``fp16`` (what follows the heads stays fp32) or ``int8``.
        batch: Images per inference.
        dynamic: Whether fewer images, down to one, are accepted too.
        pixels: Type of the images, ``float32`` in [0, 1] or ``uint8``.
        nms_candidates: Candidates that reach non-maximum suppression; the detector's own by
            default.
        orientation: Of the images that are seen as in training, if that was by the shortest edge:
            ``both`` (the default) writes two files, ``landscape`` or ``portrait`` one.
        calibration: Images for int8 to calibrate on, folders of them, or data sets, whose train
            split is used. 64 of them, evenly spaced, are used; of two files, each gets those of its
            orientation.
        verify: Images or folders of them on which raw heads and detections are compared with those
            of the same graph in fp32 PyTorch, and what is found in the images with what the
            detector finds that fits them as in training; the result is written beside the ONNX
            file. 8 of them, evenly spaced, are used.
        engine: How to build a TensorRT engine; None builds none.
        int8_for: Whose integer kernels compute an int8 file; by default TensorRT's if there is an
            engine, else those of ONNX Runtime.

    Raises:
        AdaptError: If int8 has nothing to calibrate with, or is not for the engine's library.
    """

    tail: Tail | None = None
    precision: Precision = "fp32"
    batch: int = 1
    dynamic: bool = False
    pixels: Pixels = "float32"
    nms_candidates: int | None = None
    orientation: Orientations | None = None
    calibration: Sequence[Path] = ()
    verify: Sequence[Path] = ()
    engine: BuildOptions | None = None
    int8_for: Int8For | None = None

    def __post_init__(self) -> None:
        if self.precision == "int8" and not self.calibration:
            raise AdaptError(
                "int8 needs images to calibrate on; pass a folder of training images or a data set "
                "with --calibration"
            )
        if self.int8_for and self.precision != "int8":
            raise AdaptError(
                f"--int8-for {self.int8_for} says whose int8 it is, and --precision is "
                f"{self.precision}; leave it out, or choose int8"
            )
        if self.engine and self.int8_for == "ort-cpu":
            raise AdaptError(
                "--int8-for ort-cpu gives activations zero points, which TensorRT refuses; "
                "leave it out with --trt"
            )

    @property
    def library(self) -> Int8For:
        """Whose integer kernels compute an int8 file."""
        return self.int8_for or int8_for("tensorrt" if self.engine else "ort-cpu")

    @property
    def graph(self) -> GraphOptions:
        """How the ONNX file is written; int8 is made from it and calibrated in fp32."""
        return GraphOptions(
            tail=self.tail or ("tensor-nms" if self.engine else "onnx-nms"),
            precision=rest_precision("tensorrt" if self.engine else "ort-cpu", self.precision),
            batch=self.batch,
            dynamic=self.dynamic,
            pixels=self.pixels,
        )

    @property
    def calibrated_on(self) -> Samples:
        """The images that int8 is calibrated on."""
        return self._samples(training_images(self.calibration), CALIBRATION_IMAGES)

    @property
    def verified_on(self) -> Samples:
        """The images that the files are compared with PyTorch on."""
        return self._samples(find_images(self.verify), VERIFY_IMAGES)

    def _samples(self, paths: Sequence[Path], limit: int) -> Samples:
        return Samples(spread(paths, max(limit, self.batch)), self.batch, self.dynamic)

    def files(self, detector: Path, path: Path) -> dict[Path, Canvas]:
        """Return the ONNX files to write, with their canvases.

        Args:
            detector: File that ``adapt finetune`` wrote.
            path: The ONNX file, or the first of two.

        Raises:
            AdaptError: If the detector cannot be read, or has one canvas for all orientations.
        """
        return planned(read_detector_info(detector)[0].input, path, self.orientation)


def deploy(
    detector: Path, onnx_path: Path, deployment: Deployment, *, progress: Progress = silent
) -> dict[str, Any]:
    """Export a detector to ONNX; verify it and build a TensorRT engine from it if asked.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write; the engine gets the same name with ``.plan``, and the files
            for portrait images are those of :func:`export.graph.canvas.portrait_path`.
        deployment: Which files to write, and how.
        progress: Called with (done, total) after every file.

    Returns:
        The files and what is known of them.

    Raises:
        AdaptError: If the detector or an image cannot be read, an fp32 export detects something
            else than PyTorch, an engine something else than its file, or TensorRT is missing or
            refuses the network. Then nothing is written.
    """
    check_possible(detector, deployment)
    with staged(onnx_path) as path:
        write_graphs(detector, path, deployment)
        return finish(detector, path, deployment, onnx_path, progress=progress)


@contextmanager
def staged(onnx_path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; its files move beside ``onnx_path`` if nothing fails."""
    make_place(onnx_path)
    with tempfile.TemporaryDirectory(dir=onnx_path.parent, prefix=".export-") as folder:
        yield Path(folder, onnx_path.name)
        for file in Path(folder).iterdir():
            file.replace(onnx_path.parent / file.name)


def check_possible(detector: Path, deployment: Deployment) -> None:
    """Check before the work what would stop it later.

    Raises:
        AdaptError: If the detector or an image cannot be read, there are too few images, the engine
            does not fit the graph, its TensorRT is not installed or lacks an operator, or the
            detector has two stages and is not for ONNX Runtime.
    """
    deployment.files(detector, detector)
    config, graph = read_detector_info(detector)[0].detector, deployment.graph
    check_graph(config, graph.tail, engine=bool(deployment.engine), of=str(detector))
    check_engine(deployment, config.nms_candidates)
    deployment.calibrated_on.check()
    deployment.verified_on.check()


def check_engine(deployment: Deployment, nms_candidates: int) -> None:
    """Check that the engine's options fit the graph and that its TensorRT is installed.

    Args:
        deployment: Which files to write, and how.
        nms_candidates: Of the detector, unless the deployment has others.

    Raises:
        AdaptError: If not, or if that TensorRT lacks an operator of the graph.
    """
    graph = deployment.graph
    if deployment.engine is None:
        return
    tuned = deployment.engine.tuned_batch
    if tuned and not (graph.dynamic and tuned <= graph.batch):
        raise AdaptError(
            f"an engine tuned for {tuned} images must take a dynamic batch; pass --dynamic and "
            f"--batch {max(tuned, 2)} or more"
        )
    cache = deployment.engine.timing_cache
    if cache and cache.is_dir():  # TensorRT-RTX would not read it, and say nothing
        raise AdaptError(f"timing cache {cache} is a folder; name a file")
    trt = load_tensorrt(deployment.engine.flavour)
    if graph.tail != "none":
        check_candidates(trt.__name__, deployment.nms_candidates or nms_candidates)
    if graph.tail == "onnx-nms":
        if trt.__name__ == "tensorrt_rtx":
            raise AdaptError(
                "TensorRT-RTX has no NonMaxSuppression; export with --tail tensor-nms for it"
            )
        warn(
            "TensorRT waits for the number of boxes of tail onnx-nms, so it runs in no CUDA graph; "
            "tensor-nms does"
        )


def write_graphs(detector: Path, path: Path, deployment: Deployment) -> None:
    """Write the ONNX files of a deployment; int8 calibrated.

    Raises:
        AdaptError: If the detector or a calibration image cannot be read.
    """
    if deployment.precision == "int8":
        with quantizer(detector, path, deployment) as int8:
            int8.write()
    else:
        _write_float(detector, path, deployment)


class Quantizers:
    """Writes int8 versions of the files of a deployment.

    Args:
        of_files: What calibrated each of them.
    """

    def __init__(self, of_files: Mapping[Path, Quantizer]) -> None:
        self._of_files = of_files

    def write(self, kept: Sequence[str] = ()) -> None:
        """Write the files, with the convolutions of ``kept`` weights in fp32."""
        for path, quantizer in self._of_files.items():
            quantizer.write(path, kept)

    def most_sensitive(
        self, batches: int = SENSITIVITY_BATCHES, progress: Progress = silent
    ) -> list[str]:
        """Rank the weights, which all files share; see :meth:`Quantizer.most_sensitive`."""
        return next(iter(self._of_files.values())).most_sensitive(batches, progress)


@contextmanager
def quantizer(detector: Path, path: Path, deployment: Deployment) -> Iterator[Quantizers]:
    """Calibrate a detector and yield what writes its int8 files.

    Args:
        detector: File that ``adapt finetune`` wrote.
        path: The ONNX file, or the first of two.
        deployment: Which files to write, and how.

    Raises:
        AdaptError: If the detector or an image cannot be read.
    """
    files, samples = deployment.files(detector, path), deployment.calibrated_on
    batches = [samples.batches(x, deployment.pixels) for x in samples.fitted(list(files.values()))]
    with tempfile.TemporaryDirectory() as folder:
        fp32, half = Path(folder, "fp32"), Path(folder, "half")
        _write_float(detector, fp32 / path.name, deployment, "fp32")
        if deployment.graph.precision == "fp16":
            _write_float(detector, half / path.name, deployment)
        calibrated = (
            Quantizer(
                fp32 / file.name,
                of_file,
                half / file.name if half.is_dir() else None,
                deployment.library,
            )
            for file, of_file in zip(files, batches, strict=True)
        )
        yield Quantizers(dict(zip(files, calibrated, strict=True)))


def _write_float(
    detector: Path, path: Path, deployment: Deployment, precision: FloatPrecision | None = None
) -> None:
    model, info = _load(detector, deployment)
    graph = replace(deployment.graph, precision=precision or deployment.graph.precision)
    provenance = {"detector_sha256": file_hash(detector)}
    for file, canvas in deployment.files(detector, path).items():
        export_detector(model, info, file, graph, provenance=provenance, canvas=canvas)


def _load(detector: Path, deployment: Deployment) -> tuple[RetinaNet, DetectorInfo]:
    model, info = load_detector(detector)
    if deployment.nms_candidates:
        fewer = replace(info.detector, nms_candidates=deployment.nms_candidates)
        info = replace(info, detector=fewer)
    return model, info


def finish(
    detector: Path,
    path: Path,
    deployment: Deployment,
    onnx_path: Path,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Verify the ONNX files of a deployment and build their engines, as far as it has them.

    Args:
        detector: The detector file it was made from.
        path: Where the ONNX file, or the first of two, is now; parity report and engines are
            written beside it.
        deployment: Which files to write, and how.
        onnx_path: Where the ONNX file will be.
        progress: Called with (done, total) after every file.

    Returns:
        The files and what is known of them; of a second file under ``portrait``.
    """
    files = list(deployment.files(detector, path))
    steps = len(files) * (1 + bool(deployment.engine)) + bool(deployment.verify)
    progress(len(files), steps)
    summaries = [_summary(file, onnx_path.parent / file.name) for file in files]
    if deployment.verify:
        parity = {"onnx_sha256": file_hash(path), **_verify(detector, path, deployment).to_dict()}
        summaries[0]["parity"] = parity
        write_json(path.with_name(path.name + ".parity.json"), parity)
        progress(len(files) + 1, steps)
    if deployment.engine:
        for number, (file, summary) in enumerate(zip(files, summaries, strict=True), start=1):
            summary |= _engine(file, onnx_path.parent / file.name, deployment.engine)
            progress(steps - len(files) + number, steps)
        if deployment.verify and torch.cuda.is_available():
            _verify_engines(detector, path, deployment, summaries)
    landscape, *portrait = summaries
    return {**landscape, "portrait": portrait[0]} if portrait else landscape


def _summary(path: Path, onnx_path: Path) -> dict[str, Any]:
    """Return what an ONNX file is, by the path where it will be."""
    info, content = read_onnx_info(path)
    canvas = Canvas.of(content)
    return {
        "onnx": str(onnx_path),
        "precision": content["precision"],
        "tail": content["tail"],
        "size_mb": path.stat().st_size / 1e6,
        "input": f"{content['pixels']} {ImageInput.of(info, content)}",
        **({"scale": canvas.smaller()} if canvas.orientation and not canvas.companion else {}),
    }


def _engine(path: Path, onnx_path: Path, options: BuildOptions) -> dict[str, Any]:
    """Build the engine of an ONNX file, and return what was built."""
    report = build_engine(path, path.with_suffix(".plan"), options, name=str(onnx_path))
    return {"engine": str(onnx_path.with_suffix(".plan")), **report.to_dict()}


def _verify_engines(
    detector: Path, path: Path, deployment: Deployment, summaries: Sequence[dict[str, Any]]
) -> None:
    """Run the engines of a deployment and compare them with their ONNX files; tell the summaries.

    Raises:
        AdaptError: If an engine does not compute what its file does.
    """
    files = deployment.files(detector, path)
    of_files = deployment.verified_on.fitted(list(files.values()))
    for file, images, summary in zip(files, of_files, summaries, strict=True):
        plan = file.with_suffix(".plan")
        report = verify_engine(plan, file, images)
        summary["engine_parity"] = report.to_dict()
        write_json(plan.with_name(f"{plan.name}.parity.json"), report.to_dict())


def _verify(detector: Path, path: Path, deployment: Deployment) -> ParityReport:
    """Compare the ONNX files of a deployment with PyTorch.

    Raises:
        AdaptError: If an fp32 export does not compute the same.
    """
    model, info = _load(detector, deployment)
    files, samples = deployment.files(detector, path), deployment.verified_on
    first, *others = (
        verify_export(
            model,
            info,
            file,
            images,
            tolerances=Tolerances.of(deployment.precision),
            same_candidates=True,
        )
        for file, images in zip(files, samples.fitted(list(files.values())), strict=True)
    )
    report = sum(others, first)
    # Lower precisions differ as they must; how much is in the report.
    if deployment.precision == "fp32" and not report.passed:
        raise AdaptError(
            f"{path.name} does not compute what PyTorch computes: {report.reasons[0]}; report this "
            "with the versions that `adapt doctor` prints"
        )
    if info.input.resize == "letterbox" or deployment.graph.tail == "none":
        return report
    with TorchRunner(detector) as eager, open_runner("ort-cpu", path) as deployed:
        return replace(report, fit=compare_fits(eager, deployed, samples.paths))
