"""Which command shows what a run found as one page? (`adapt report`)"""

from pathlib import Path
from typing import Annotated

import typer

from adapt.command_line import JsonOpt, show


def report_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a benchmark's report.", metavar="FOLDER")
    ],
    as_json: JsonOpt = False,
) -> None:
    """Write the page of a finished run anew, `index.html` in its report, from its files alone.

    Nothing is measured, and no detector runs. The page says what it cannot show, and why.

    Example: `adapt report runs/bccd`
    """
    from adapt.progress import console_stage
    from bench.report.page import write_page

    with console_stage("report") as progress:
        page = write_page(folder, progress)
    if as_json:
        show({"page": str(page)}, as_json=True)
    else:
        print(f"page: {page}")
