"""Is a deployed file refused because it lost AP against its fp32 detector? (`export --ap-gate`)"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import Fitting
from adapt.errors import AdaptError
from adapt.machine import usable_cores
from adapt.progress import Progress, silent
from bench.networks.evaluation import evaluate_artifact, evaluate_runner
from export.deploy import (
    Deployment,
    Quantizers,
    check_possible,
    finish,
    quantizer,
    staged,
    write_graphs,
)
from export.graph.canvas import Canvas
from export.run.fits import SAME_SCALE
from export.run.runner import TorchRunner


@dataclass(frozen=True)
class GateReport:
    """AP of a deployed detector against fp32 PyTorch on the same images, in percent.

    Attributes:
        ap_torch: AP of the detector by torchvision's own inference.
        ap_artifact: AP of the deployed file.
        ap_engine: AP of the TensorRT engine; None if there is none, or no GPU to run it.
        drop: How much lower than PyTorch's the lowest AP of the files is; negative if higher.
        images: Evaluated images.
        annotations: Their file.
        repaired: How many of their boxes were cut or left out; empty if none.
        kept_in_fp32: Weights of an int8 file that had to stay in fp32.
        drops: Drop of every int8 file that was tried, by its number of weights in fp32.
    """

    ap_torch: float
    ap_artifact: float
    ap_engine: float | None
    drop: float
    images: int
    annotations: str
    repaired: str = ""
    kept_in_fp32: tuple[str, ...] = ()
    drops: dict[int, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


class Gate:
    """Refuses files that lose more AP than allowed.

    Args:
        detector: File that ``adapt finetune`` wrote.
        split: Images and boxes to evaluate on.
        max_drop: Largest drop of AP, in points of 100.
        option: What sets it, for the error.
        progress: Called with (done, total) images of every evaluation.

    Attributes:
        ap_torch: AP of the detector in fp32 PyTorch, in percent.
    """

    def __init__(
        self,
        detector: Path,
        split: CocoSplit,
        max_drop: float,
        *,
        option: str = "--ap-gate",
        progress: Progress = silent,
    ) -> None:
        self.split, self.max_drop, self._option = split, max_drop, option
        self._progress = progress
        self.ap_torch = self.ap(detector, "torch")

    def ap(self, artifact: Path, runtime: str) -> float:
        """Return the AP of a file in percent."""

        def step(done: int, total: int, note: str = "", /) -> None:
            self._progress(done, total, f"AP on {runtime}")

        cores = usable_cores()
        return 100 * evaluate_artifact(artifact, self.split, runtime, cores, progress=step).ap

    def check_fit(self, detector: Path, files: Mapping[Path, Canvas]) -> None:
        """Check what is lost before any rounding, if files see images smaller than training did.

        Args:
            detector: File that ``adapt finetune`` wrote.
            files: The ONNX files with their canvases.

        Raises:
            AdaptError: If that alone loses more AP than allowed.
        """
        canvases = list(files.values())
        fitting = Fitting(canvases[0].resize, tuple(canvas.size for canvas in canvases))
        scales = [fitting.relative_scale(x.height, x.width) for x in self.split.images]
        smaller = sum(scale < 1 - SAME_SCALE for scale in scales)
        if not smaller:
            return
        with TorchRunner(detector, usable_cores()) as runner:
            runner.fitting = fitting
            ap = 100 * evaluate_runner(runner, self.split)[0].ap
        drop = self.ap_torch - ap
        if drop > self.max_drop:
            raise AdaptError(
                f"AP drops by {drop:.2f} points, from {self.ap_torch:.2f} to {ap:.2f}, in fp32 "
                f"PyTorch already, because {smaller} of {len(scales)} images of "
                f"{self.split.annotations} are seen smaller than in training, at down to "
                f"{min(scales):.2f} of the scale: the file has a canvas for "
                f"{canvases[0].orientation} images alone; export with --orientation both"
            )

    def check(self, aps: dict[str, float]) -> float:
        """Return by how much the lowest AP is lower than PyTorch's.

        Args:
            aps: AP in percent, by the name of the evaluated file.

        Raises:
            AdaptError: If it is lower by more than allowed.
        """
        worst = min(aps, key=lambda name: aps[name])
        drop = self.ap_torch - aps[worst]
        if drop > self.max_drop:
            raise AdaptError(
                f"AP drops by {drop:.2f} points, from {self.ap_torch:.2f} (fp32 PyTorch) to "
                f"{aps[worst]:.2f} ({worst}) on {len(self.split)} images of "
                f"{self.split.annotations}, more than {self._option} {self.max_drop:g}; export in "
                "a higher precision, with more --nms-candidates, or calibrate on more images like "
                "these"
            )
        return drop


@dataclass(frozen=True)
class GateOptions:
    """How much AP a deployed detector may lose, and on which images.

    Attributes:
        drop: Largest drop of AP in points of 100.
        data: Folder of the data set to evaluate on.
        split: Its split; files are adjusted to it, so that it is not the one to report AP of.
        repair: Cut or leave out boxes that cannot be used, instead of refusing the split.
        option: What sets the drop, for the error.
        refused: Folder for the files that lose more, for study; None deletes them.
    """

    drop: float
    data: Path | None
    split: str = "val"
    repair: bool = False
    option: str = "--ap-gate"
    refused: Path | None = None


def deploy_within(
    options: GateOptions,
    detector: Path,
    onnx_path: Path,
    deployment: Deployment,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Export a detector, and keep the files only if AP does not drop by more than a gate.

    An int8 file that drops by more is written again with the most sensitive convolutions in fp32:
    one, two, four, and so on, up to half of them.

    Args:
        options: How much AP may be lost, on which images.
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write.
        deployment: Which files to write, and how.
        progress: Told after every image.

    Returns:
        What :func:`export.deploy.deploy` returns, and the gate's report.

    Raises:
        AdaptError: If AP drops by more; then nothing is written, but into ``options.refused``.
    """
    split = _evaluable_split(options, deployment)  # what options lack before what files lack
    check_possible(detector, deployment)
    with staged(onnx_path) as path, _kept_for_study(path.parent, options.refused):
        gate = Gate(detector, split, options.drop, option=options.option, progress=progress)
        gate.check_fit(detector, deployment.files(detector, path))
        ap, kept, drops = _write_onnx(detector, path, deployment, gate, progress)
        gate.check({path.name: ap})  # before the minutes of an engine
        summary = finish(detector, path, deployment, onnx_path)
        ap_engine = _engine_ap(gate, path, summary)
        aps = {path.name: ap} | ({"the engine": ap_engine} if ap_engine is not None else {})
        report = GateReport(
            ap_torch=gate.ap_torch,
            ap_artifact=ap,
            ap_engine=ap_engine,
            drop=gate.check(aps),
            images=len(split),
            annotations=str(split.annotations),
            repaired=split.repaired(),
            kept_in_fp32=kept,
            drops=drops,
        )
    return {**summary, "ap_gate": report.to_dict()}


@contextmanager
def _kept_for_study(files: Path, refused: Path | None) -> Iterator[None]:
    """Copy the files of a folder if they are refused."""
    try:
        yield
    except AdaptError:
        if refused is not None:
            shutil.copytree(files, refused, dirs_exist_ok=True)
        raise


def _evaluable_split(options: GateOptions, deployment: Deployment) -> CocoSplit:
    """Return the images to evaluate on, if the deployed file can be evaluated at all."""
    if options.data is None:
        raise AdaptError("--ap-gate evaluates on images with boxes; pass a data set with --data")
    if deployment.graph.tail == "none":
        raise AdaptError("--ap-gate evaluates detections, tail 'none' has none; use another tail")
    return load_split(options.data, options.split, repair=options.repair)


def _engine_ap(gate: Gate, path: Path, summary: dict[str, Any]) -> float | None:
    if "engine" not in summary or not torch.cuda.is_available():
        return None
    return gate.ap(path.with_suffix(".plan"), summary["flavour"].replace("_", "-"))


def _write_onnx(
    detector: Path, path: Path, deployment: Deployment, gate: Gate, progress: Progress
) -> tuple[float, tuple[str, ...], dict[int, float] | None]:
    """Write the ONNX file, int8 with as few weights in fp32 as the gate needs.

    Returns:
        Its AP, the weights in fp32, and the drop of every file that was tried, by their number.
    """
    if deployment.precision != "int8":
        write_graphs(detector, path, deployment)
        return gate.ap(path, "ort-cpu"), (), None
    drops: dict[int, float] = {}
    with quantizer(detector, path, deployment) as int8:
        for kept in _kept_in_fp32(int8, progress):
            int8.write(kept)
            ap = gate.ap(path, "ort-cpu")
            drops[len(kept)] = gate.ap_torch - ap
            if drops[len(kept)] <= gate.max_drop:
                break
    return ap, kept, drops


def _kept_in_fp32(int8: Quantizers, progress: Progress) -> Iterator[tuple[str, ...]]:
    """Yield which weights to keep in fp32: none, then more and more of the most sensitive."""
    yield ()
    ranking = int8.most_sensitive(progress=progress)
    number = 1
    while number <= len(ranking) / 2:
        yield tuple(ranking[:number])
        number *= 2
