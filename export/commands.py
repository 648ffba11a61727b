"""Which commands run deployed detectors? (`adapt predict`, `adapt parity`)"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import JsonOpt, grouped, show

if TYPE_CHECKING:
    from export.run.matching import Tolerances

ArtifactArg = Annotated[Path, typer.Argument(help="Detector (.safetensors), ONNX file or engine.")]
ImagesArg = Annotated[list[Path], typer.Argument(help="Images, or folders of them.")]
RuntimeOpt = Annotated[
    str | None, typer.Option("--runtime", help="Runtime; the file's usual one if empty.")
]
ThreadsOpt = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")]


def predict_command(
    artifact: ArtifactArg,
    images: ImagesArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path(
        "runs/predictions"
    ),
    score: Annotated[
        float, typer.Option("--score", min=0, max=1, help="Lowest score that is drawn and written.")
    ] = 0.3,
    runtime: RuntimeOpt = None,
    threads: ThreadsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Draw what a detector finds in images, and write it as COCO JSON.

    `predictions.json` opens in pycocotools. Image ids are counted from 1; category ids are those of
    the training images' annotations, counted from 1 where an old detector file does not know them.
    `adapt eval --results` writes a results list with the image ids of a data set.

    Example: `adapt predict runs/bccd/derived.onnx photos/ --out runs/predictions`
    """
    from adapt.data.images import find_images
    from adapt.progress import console_stage
    from export.run.predict import predict
    from export.run.runner import open_runner, usual_runtime

    paths = find_images(images)
    with (
        open_runner(runtime or usual_runtime(artifact), artifact, threads) as runner,
        console_stage("predict") as progress,
    ):
        found = predict(runner, paths, out, score_threshold=score, progress=progress)
    summary = {"images": len(paths), "detections": len(found["annotations"]), "out": str(out)}
    show({**summary, "note": found["info"]["description"]}, as_json=as_json)


@dataclass(frozen=True)
class ToleranceOptions:
    """How far two artifacts of one detector may differ."""

    score_tol: Annotated[
        float, typer.Option("--score-tol", min=0, help="Largest difference of scores.")
    ] = 1e-4
    box_tol: Annotated[
        float, typer.Option("--box-tol", min=0, help="Largest difference of boxes in pixels.")
    ] = 0.05
    head_tol: Annotated[
        float, typer.Option("--head-tol", min=0, help="Largest difference of logits and deltas.")
    ] = 1e-3

    def tolerances(self) -> "Tolerances":
        """Return these as the comparison takes them."""
        from export.run.matching import Tolerances

        return Tolerances(self.score_tol, self.box_tol, self.head_tol)


@grouped
def parity_command(
    first: ArtifactArg,
    second: Annotated[Path, typer.Argument(help="Another artifact of the same detector.")],
    images: ImagesArg,
    largest: ToleranceOptions,
    as_json: JsonOpt = False,
) -> None:
    """Compare what two artifacts of one detector find; exit code 1 if they differ.

    If one of the two ends in raw heads (tail `none`), those are compared.

    Example: `adapt parity derived.onnx derived-fp16.onnx photos/ --score-tol 0.01 --box-tol 1`
    """
    from adapt.data.images import find_images
    from adapt.progress import console_stage
    from export.run.parity import compare_artifacts
    from export.run.runner import open_runner, usual_runtime

    paths, tolerances = find_images(images), largest.tolerances()
    with (
        open_runner(usual_runtime(first), first) as a,
        open_runner(usual_runtime(second), second) as b,
        console_stage("parity") as progress,
    ):
        report = compare_artifacts(a, b, paths, tolerances=tolerances, progress=progress)
    show(report.to_dict(), as_json=as_json, title="parity")
    if not report.passed:
        raise typer.Exit(1)
