"""Which commands does `adapt` have, and how do they report errors?

A command is a function in the `commands` module of the highest package that it needs. Heavy
libraries are imported inside these functions, so that `adapt --help` answers at once.
"""

import errno
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from adapt.commands import data_app, weights_command
from adapt.errors import AdaptError
from bench.commands.costs import costs_app, profile_command
from bench.commands.derive import derive_command
from bench.commands.doctor import doctor_command
from bench.commands.export import export_command
from bench.commands.networks import bench_command, eval_command
from bench.commands.run import demo_command, run_command
from export.commands import parity_command, predict_command
from search.commands import finetune_command, search_command

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)

# In the order of the workflow, as `adapt --help` shows them.
STAGES: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Everything at once": {"demo": demo_command, "run": run_command},
    "1. Prepare": {"doctor": doctor_command, "weights": weights_command, "data": data_app},
    "2. Measure what operations cost here": {"profile": profile_command, "costs": costs_app},
    "3. Search": {"search": search_command, "derive": derive_command},
    "4. Train": {"finetune": finetune_command},
    "5. Deploy": {
        "export": export_command,
        "parity": parity_command,
        "predict": predict_command,
    },
    "6. Measure detectors": {"eval": eval_command, "bench": bench_command},
}


class Commands(TyperGroup):
    """Turns known errors into one sentence on stderr and exit code 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the workflow; Typer would list groups last."""
        return [name for commands in STAGES.values() for name in commands]

    def invoke(self, ctx: Any) -> Any:
        """Run a command; unknown errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except AdaptError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            message = f"cannot write {error.filename}: {error.strerror}; choose another --out"
        except KeyboardInterrupt:
            print(
                "stopped; profile, search, finetune and run continue from their last checkpoint",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(1) from None


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
