"""Which command checks the machine? (`adapt doctor`)"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from adapt.command_line import JsonOpt, show
from adapt.errors import AdaptError


def doctor_command(
    verify: Annotated[
        bool, typer.Option("--verify", help="Build and run a tiny detector on every runtime here.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="JSON file of what was verified, to attach to an issue."),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Tell what works on this machine, and how to get what does not.

    With `--verify`, find out whether it really works: outputs, precision, timing and a cost table
    of every runtime. The first thing to do on a new GPU.

    Example: `adapt doctor --verify --report doctor.json`
    """
    from bench.doctor.runtimes import diagnose, to_json

    if report and not verify:
        raise AdaptError("--report is of a verification; pass --verify too")
    if verify:
        _verify(report, as_json=as_json)
        return
    findings = diagnose()
    show(to_json(findings) if as_json else findings, as_json=as_json, title="adapt doctor")


def _verify(report: Path | None, *, as_json: bool) -> None:
    from adapt.artifacts import make_folder, write_json
    from adapt.progress import console_stage
    from bench.doctor.verify import show_outcome, verify

    if report:
        make_folder(report.parent)  # an unwritable folder must not cost the hour
    with console_stage("verify") as progress:
        done = verify(partial(show_outcome, as_json=as_json), progress=progress)
    content = done.to_dict()
    if report:
        write_json(report, content)
    print(json.dumps(content, indent=2) if as_json else "\n".join(done.summary()))
    if done.failed:
        raise typer.Exit(1)
