"""Which command says whether a detector is better than another? (`adapt compare`)"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from adapt.command_line import JsonOpt, grouped, show
from bench.commands.networks import SplitOptions
from export.commands import ThreadsOpt


@grouped
def compare_command(
    first: Annotated[Path, typer.Argument(help="Detector file, or folder of a run.")],
    second: Annotated[Path, typer.Argument(help="The one that is judged.")],
    images: SplitOptions,
    threads: ThreadsOpt = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Interleaved rounds.")] = 10,
    samples: Annotated[
        int, typer.Option("--samples", min=20, help="Draws of the images for the interval of AP.")
    ] = 500,
    as_json: JsonOpt = False,
) -> None:
    """Say whether the second detector is better: AP on the same images, and latency in turns.

    The exit code is 1 if it was shown to find less or to be slower.

    Example: `adapt compare runs/old runs/new --data datasets/bccd`
    """
    from adapt.progress import console_stage
    from bench.networks.measure import DETECTOR_PROTOCOL, Timing
    from bench.networks.pair import compare_pair

    split = images.load()
    timing = Timing(threads, protocol=replace(DETECTOR_PROTOCOL, rounds=rounds))
    with console_stage("compare") as progress:
        found = compare_pair(first, second, split, timing, samples, progress)
    show(found.to_dict() if as_json else found.readable(), as_json=as_json)
    if found.worse:
        raise typer.Exit(1)
