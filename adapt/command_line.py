"""What do all commands share? (groups of options, results on stdout, warnings on stderr)"""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from adapt.machine import ESTIMATED, busy
from adapt.terminal import print_fields

JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
RepairOpt = Annotated[
    bool,
    typer.Option("--repair", help="Cut or leave out boxes that cannot be used, and say how many."),
]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options.

    Every field of a parameter that is annotated with a dataclass becomes an option (or argument) of
    its own, declared by the field's annotation; the command gets the dataclass filled in.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _options(hints[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        built = {
            name: group(**{option.name: values.pop(option.name) for option in _options(group)})
            for name, group in groups.items()
        }
        command(**built, **values)

    # Keywords only: a signature refuses positional parameters without a default behind others.
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    # Typer reads both of these.
    flat.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in keywords}
    return flat


def _options(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    fields = inspect.signature(group).parameters.values()
    return [field.replace(annotation=hints[field.name]) for field in fields]


def show(content: dict[str, Any], *, as_json: bool, title: str = "") -> None:
    """Print a result on stdout: JSON for programs, a table for people."""
    if as_json:
        print(json.dumps(content, indent=2, default=str))
        return
    print_fields({_words(name): plain(value) for name, value in content.items()}, title)


def _words(name: str) -> str:
    """Return the name of a field in words; what is in words already may hold other names."""
    return name if " " in name else name.replace("_", " ")


def plain(value: object) -> str:
    """Return a value as people read it: four digits of a number, one line per item of a list."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def warn(message: str) -> None:
    """Print a warning on stderr at once."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def warn_if_busy(consequence: str = ESTIMATED) -> bool:
    """Warn that times told now are too long, if other programs compute here; tell whether.

    Args:
        consequence: What that spoils, and what to do.
    """
    found = busy(consequence)
    if found:
        warn(found)
    return bool(found)
