"""Which commands look at data sets and weights? (`adapt data`, `adapt weights`)"""

from pathlib import Path
from typing import Annotated

import typer

from adapt.command_line import JsonOpt, show

data_app = typer.Typer(no_args_is_help=True, help="Look at a data set.")


def weights_command(
    source: Annotated[str, typer.Argument(help="Source backbone.")] = "mobilenet_v2",
) -> None:
    """Find or download the ImageNet weights of a source backbone and print their path.

    Example: `adapt weights mobilenet_v2`
    """
    from adapt.network.weights import find_weights

    print(find_weights(source))


@data_app.command("check")
def data_check_command(
    root: Annotated[Path, typer.Argument(help="Folder of a COCO-format data set.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split, repeatable; train, val, and test where there is one."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Open every image and box of a data set and report all that would go wrong.

    The exit code is 1 if a training or an evaluation would be refused.

    Example: `adapt data check datasets/bccd --split train --split val`
    """
    from adapt.data.check import check_data
    from adapt.progress import console_stage

    reports = check_data(root, split or (), stage=console_stage)
    if as_json:
        show({name: report.to_dict() for name, report in reports.items()}, as_json=True)
    else:
        for name, report in reports.items():
            show(report.shown(), as_json=False, title=name)
    if any(report.problems for report in reports.values()):
        raise typer.Exit(1)
