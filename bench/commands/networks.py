"""Which commands benchmark finished detectors? (`adapt eval`, `adapt bench`)"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import JsonOpt, RepairOpt, grouped, show, warn
from export.commands import ArtifactArg, RuntimeOpt, ThreadsOpt

if TYPE_CHECKING:
    from adapt.data.coco import CocoSplit


@dataclass(frozen=True, kw_only=True)
class WhichImages:
    """Which images of a data set."""

    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to evaluate; test where there is one, or val."),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="N images, spread evenly.")
    ] = None
    repair: RepairOpt = False


DATA = typer.Option("--data", help="Data set: a folder in COCO, VOC or YOLO format.")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(WhichImages):
    """Which images are evaluated."""

    data: Annotated[Path, DATA]

    @property
    def name(self) -> str:
        """Name of the split."""
        from adapt.data.layout import usual_split

        return self.split or usual_split(self.data)

    def described(self) -> str:
        """Say which split it is, and whether networks are chosen on it."""
        chosen_on = ", on which `adapt derive --refine` chooses networks" * (self.name == "val")
        return f"split {self.name}{chosen_on}"

    def load(self) -> "CocoSplit":
        """Read the split; say what was repaired, and what may be wrong."""
        from adapt.data.coco import load_split

        split = load_split(self.data, self.name, repair=self.repair).limit(self.limit)
        for doubt in filter(None, (split.repaired(), split.cornered())):
            warn(doubt)
        return split


@dataclass(frozen=True, kw_only=True)
class BenchedOptions(WhichImages):
    """Which images detectors are compared on."""

    data: Annotated[Path | None, DATA] = None

    def of_files(self) -> SplitOptions:
        """Return them for files, which are compared on images.

        Raises:
            AdaptError: If no data set is given.
        """
        from adapt.errors import AdaptError

        if self.data is None:
            raise AdaptError("detectors are compared on images; pass --data DATASET")
        return SplitOptions(data=self.data, split=self.split, limit=self.limit, repair=self.repair)


@grouped
def eval_command(
    artifact: ArtifactArg,
    images: SplitOptions,
    runtime: RuntimeOpt = None,
    threads: ThreadsOpt = 1,
    results: Annotated[
        Path | None, typer.Option("--results", help="Write detections as COCO results JSON.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Evaluate the COCO mAP of an artifact on a runtime.

    Example: `adapt eval runs/bccd/derived.onnx --data datasets/bccd --split test`
    """
    from adapt.progress import console_stage
    from bench.networks.evaluation import evaluate_artifact

    split = images.load()
    with console_stage("eval") as progress:
        metrics = evaluate_artifact(
            artifact, split, runtime, threads, results=results, progress=progress
        )
    evaluated = {"split": images.name, "annotations": str(split.annotations), "images": len(split)}
    title = f"{artifact} on {images.described()}, at most {metrics.max_detections} per image"
    show({**evaluated, **metrics.to_dict()}, as_json=as_json, title=title)


@grouped
def bench_command(
    benched: BenchedOptions,
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Detectors (.safetensors), ONNX files, also of other tools, engines."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("runs/report"),
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="Runtime, repeatable; each file's usual one if left out."),
    ] = None,
    threads: ThreadsOpt = 1,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Images per timed call of a dynamic file.")
    ] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Interleaved rounds.")] = 10,
    every: Annotated[
        str | None,
        typer.Option(
            "--every",
            help="A call every 100ms, or 10/s (images per second), as a camera gives them; "
            "back to back if left out.",
        ),
    ] = None,
    table2: Annotated[
        bool, typer.Option("--table2", help="Count the detectors that the paper compares instead.")
    ] = False,
    measured_on: Annotated[
        str | None,
        typer.Option("--measure", help="With --table2: measure them too, on this runtime."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="With --table2: the input, height x width.")
    ] = "800x1088",
    as_json: JsonOpt = False,
) -> None:
    """Measure mAP and latency of the same artifacts in one run, and write a report.

    Example: `adapt bench runs/bccd/*.onnx --data datasets/bccd --split test`
    """
    if table2:
        _show_table_two(size, measured_on, as_json=as_json)
        return
    from adapt.errors import AdaptError
    from adapt.progress import console_stage
    from bench.networks.artifacts import on_runtimes
    from bench.networks.measure import DETECTOR_PROTOCOL, Timing, compare
    from bench.networks.pace import call_interval_ms
    from bench.networks.report import print_result, write_report
    from bench.report.page import write_page

    if not artifacts:
        raise AdaptError("there is nothing to compare; pass files, or --table2")
    images = benched.of_files()
    how = Timing(threads, batch, replace(DETECTOR_PROTOCOL, rounds=rounds), footprints=True)
    how = how.paced(call_interval_ms(every, batch) if every else 0.0)
    compared, split = on_runtimes(artifacts, runtime or ()), images.load()
    with console_stage("bench") as progress:
        result = compare(compared, split, how, report=out, progress=progress)
    write_report(out, result)
    with console_stage("report") as progress:
        page = write_page(out, progress)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print_result(result)
        print(f"{images.described()}\nreport: {out / 'report.md'}\npage: {page}")


def _show_table_two(size_text: str, runtime: str | None, *, as_json: bool) -> None:
    from adapt.data.images import InputSize
    from adapt.progress import console_stage
    from adapt.runtime import known_runtime
    from adapt.terminal import print_rows
    from bench.costs.table2 import as_text, table_two

    size = InputSize.parse(size_text, "--size")
    where = known_runtime(runtime, "--measure") if runtime else None
    with console_stage("table 2") as progress:
        rows = table_two(size, where, progress)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    titles, cells, caption = as_text(rows, size)
    print_rows(titles, cells, words=1, caption=caption)
