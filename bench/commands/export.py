"""Which command writes the files that are deployed? (`adapt export`, with `--ap-gate`)"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapt.command_line import JsonOpt, RepairOpt, grouped, show
from adapt.errors import AdaptError
from adapt.runtime import Int8For, Precision, Tail

if TYPE_CHECKING:
    from bench.acceptance.ap_gate import GateOptions
    from export.engine.configure import BuildOptions


@dataclass(frozen=True)
class GraphChoices:
    """How the ONNX file is written."""

    tail: Annotated[
        Tail | None,
        typer.Option("--tail", help="NMS, or raw heads; tensor-nms for --trt, else onnx-nms."),
    ] = None
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="Of the network; decoding and NMS are always fp32."),
    ] = "fp32"
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per inference.")] = 1
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take any number of images from 1 to --batch.")
    ] = False
    pixels: Annotated[
        Literal["float32", "uint8"],
        typer.Option("--pixels", help="Type of the images: 0 to 1, or bytes."),
    ] = "float32"
    nms_candidates: Annotated[
        int | None,
        typer.Option("--nms-candidates", min=1, help="Boxes that reach NMS, not the recipe's."),
    ] = None
    int8_for: Annotated[
        Int8For | None,
        typer.Option(
            "--int8-for",
            help="Whose integer kernels compute int8: tensorrt for --trt, else ort-cpu.",
        ),
    ] = None
    orientation: Annotated[
        Literal["both", "landscape", "portrait"] | None,
        typer.Option("--orientation", help="Images it is for, if trained by shortest-edge; both."),
    ] = None


@dataclass(frozen=True)
class CheckOptions:
    """What the written file is calibrated on, compared with and evaluated on."""

    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="Images, folders, data sets that int8 is fitted to."),
    ] = None
    verify: Annotated[
        list[Path] | None,
        typer.Option("--verify", help="Images, or folders, to compare with PyTorch's results."),
    ] = None
    ap_gate: Annotated[
        float | None,
        typer.Option(
            "--ap-gate",
            min=-100,
            max=100,
            help="Fail if AP (0 to 100) drops by more; needs --data.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Data set: --ap-gate evaluates on it, int8 calibrates on it."),
    ] = None
    split: Annotated[
        str, typer.Option("--split", help="Split of --ap-gate, which int8 is adjusted to.")
    ] = "val"
    repair: RepairOpt = False

    def images(self) -> tuple[Sequence[Path], Sequence[Path]]:
        """Return what calibrates (the data set, if nothing else does), and what is compared."""
        return self.calibration or ([self.data] if self.data else ()), self.verify or ()

    def gate(self) -> "GateOptions | None":
        """Return what may be lost, if AP is gated."""
        from bench.acceptance.ap_gate import GateOptions

        if self.ap_gate is None:
            return None
        return GateOptions(self.ap_gate, self.data, self.split, self.repair)


@dataclass(frozen=True)
class EngineOptions:
    """Whether and how a TensorRT engine is built."""

    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine too.")] = False
    flavour: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        typer.Option("--flavour", help="Kind of TensorRT; the first that is installed if empty."),
    ] = None
    workspace: Annotated[
        int | None, typer.Option("--workspace", min=1, help="TensorRT's scratch memory in MiB.")
    ] = None
    level: Annotated[
        int | None,
        typer.Option("--level", min=0, max=5, help="TensorRT's builder optimisation level."),
    ] = None
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="File of TensorRT's tactic timings.")
    ] = None
    tuned_batch: Annotated[
        int | None, typer.Option("--tuned-batch", min=1, help="Batch a dynamic engine is best at.")
    ] = None

    def build_options(self) -> "BuildOptions | None":
        """Return how to build the engine, or None for none.

        Raises:
            AdaptError: If there are options of an engine, but not ``--trt``.
        """
        from export.engine.configure import BuildOptions

        options = BuildOptions(
            flavour=self.flavour and self.flavour.replace("-", "_"),
            workspace_mb=self.workspace,
            level=self.level,
            timing_cache=self.timing_cache,
            tuned_batch=self.tuned_batch,
        )
        if not self.trt and options != BuildOptions():
            raise AdaptError("options of TensorRT build an engine; pass --trt with them")
        return options if self.trt else None


@grouped
def export_command(
    detector: Annotated[Path, typer.Argument(help="Detector file that `adapt finetune` wrote.")],
    graph: GraphChoices,
    checks: CheckOptions,
    engine: EngineOptions,
    out: Annotated[Path | None, typer.Option("--out", help="ONNX file to write.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Export a detector to ONNX, decoding and NMS inside, and to a TensorRT engine.

    Example: `adapt export runs/bccd/derived.safetensors --trt --precision fp16`
    """
    from adapt.progress import console_stage
    from bench.acceptance.ap_gate import deploy_within
    from export.deploy import Deployment, deploy

    calibration, verify = checks.images()
    deployment = Deployment(
        **vars(graph), calibration=calibration, verify=verify, engine=engine.build_options()
    )
    path, gate = out or detector.with_suffix(".onnx"), checks.gate()
    with console_stage("export") as progress:
        if gate is None:
            summary = deploy(detector, path, deployment, progress=progress)
        else:
            summary = deploy_within(gate, detector, path, deployment, progress=progress)
    show(summary, as_json=as_json, title="export")
