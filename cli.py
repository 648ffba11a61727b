"""Which commands does `adapt` have, and how do they report errors?

A command is a function in the `commands` module of the highest package that it needs. Heavy
libraries are imported inside these functions, so that `adapt --help` answers at once.
"""

import errno
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from adapt.commands import data_app, weights_command
from adapt.errors import AdaptError
from adapt.terminal import leave_closed_pipes, write_any_text
from bench.commands.compare import compare_command
from bench.commands.costs import costs_app, profile_command
from bench.commands.derive import derive_command
from bench.commands.doctor import doctor_command
from bench.commands.export import export_command
from bench.commands.init import init_command
from bench.commands.networks import bench_command, eval_command
from bench.commands.report import report_command
from bench.commands.run import demo_command, run_command
from bench.commands.study import study_command
from export.commands import parity_command, predict_command
from search.commands import finetune_command, score_command, search_command

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)
NARROW = 72  # characters of a terminal in which Rich would cut off the names of options
CLOSED_PIPE = 128 + 13  # as of programs that SIGPIPE ends
INTERRUPTED = 128 + signal.SIGINT  # as of programs that the signal ends
TERMINATED = 128 + signal.SIGTERM

# In the order of the workflow, as `adapt --help` shows them.
STAGES: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Everything at once": {"demo": demo_command, "run": run_command},
    "1. Prepare": {
        "doctor": doctor_command,
        "data": data_app,
        "init": init_command,
        "weights": weights_command,
    },
    "2. Measure operations": {"profile": profile_command, "costs": costs_app},
    "3. Search": {"search": search_command, "score": score_command, "derive": derive_command},
    "4. Train": {"finetune": finetune_command},
    "5. Deploy": {
        "export": export_command,
        "parity": parity_command,
        "predict": predict_command,
    },
    "6. Measure detectors": {
        "eval": eval_command,
        "bench": bench_command,
        "compare": compare_command,
        "report": report_command,
    },
    "7. Compare ways to a network": {"study": study_command},
}


class TerminatedError(KeyboardInterrupt):
    """A scheduler or a service manager ends this process, and gives it some seconds."""


class Commands(TyperGroup):
    """Turns known errors into one sentence on stderr and exit code 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the workflow; Typer would list groups last."""
        return [name for commands in STAGES.values() for name in commands]

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, or show its help, on whatever stdout is."""
        write_any_text()
        if threading.current_thread() is threading.main_thread():  # only there can signals be set
            signal.signal(signal.SIGTERM, _terminate)
        columns = shutil.get_terminal_size().columns
        if columns < NARROW:
            self.context_settings["terminal_width"] = columns
            _without_table(self)
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; unknown errors keep their traceback."""
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()  # here, where a closed pipe is no traceback yet
            return result
        except AdaptError as error:
            message = str(error)
        except OSError as error:
            message = _unwritable(error)
        except KeyboardInterrupt as stopped:
            print(
                "stopped; profile, search, finetune and run continue from their last checkpoint",
                file=sys.stderr,
            )
            terminated = isinstance(stopped, TerminatedError)
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(1) from None


def _terminate(*_: object) -> None:
    """End as by Ctrl-C: nothing is left half-written, and no process goes on."""
    raise TerminatedError


def _without_table(command: Any) -> None:
    """Let the commands below a group show the help of their options in lines, not in a table."""
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            _without_table(below)
    else:
        command.rich_markup_mode = None


def _unwritable(error: OSError) -> str:
    """Return what cannot be written, to a file or a closed pipe; other errors are raised again."""
    if isinstance(error, BrokenPipeError):
        if leave_closed_pipes():
            raise typer.Exit(CLOSED_PIPE) from None
        # Typer says nothing of a BrokenPipeError, and this one is between processes of a command.
        raise RuntimeError("another process of this command has ended") from error
    if error.errno not in NOT_WRITABLE:
        raise error
    return f"cannot write {error.filename or 'to stdout'}: {error.strerror}; choose another --out"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="The best object detector for a latency budget on your own hardware.",
    epilog="First run: `adapt demo`. Whole pipeline on your data: `adapt run RECIPE.toml`.",
)
for stage, commands in STAGES.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=stage)
        else:
            app.command(name, rich_help_panel=stage)(command)


if __name__ == "__main__":
    app()
