"""How is text shown as it is on every terminal? (narrow, without UTF-8, or closed already)"""

import codecs
import io
import os
import select
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# What ASCII has instead; other characters that an encoding lacks become escapes such as \xe9.
ASCII = {"–": "-", "…": "...", "±": "+-", "→": "->", "×": "x"}
IN_ASCII = "in_ascii"  # name of the handler of errors that does this
NARROWEST = 8  # characters of the column that names the rows
BORDERS = 3  # characters beside a column: two spaces and a line


def print_fields(fields: Mapping[str, str], title: str = "") -> None:
    """Print names and values, one below the other; nothing is left out, however narrow it gets."""
    from rich.table import Table

    table = Table(show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(_encodable(name), _encodable(value))
    _show(title, table)


def print_rows(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1, caption: str = ""
) -> None:
    """Print a table, or names and values row by row where its columns would not be readable.

    Args:
        titles: Of the columns.
        rows: Cells; the first of a row is its name. Words of the others stay whole.
        words: How many of the columns, from the left, are no numbers.
        caption: What is to be known of all rows.
    """
    from rich.table import Table

    table = Table()
    lines = [[_encodable(row[0]), *map(_one_below_the_other, row[1:])] for row in (titles, *rows)]
    if _least_width(lines) > _console().width:
        for row in rows:
            print_fields(dict(zip(titles, row, strict=True)))
        _show(caption)
        return
    for place, title in enumerate(lines[0]):
        side: Literal["left", "right"] = "left" if place < words else "right"
        table.add_column(title, justify=side, no_wrap=place > 0, overflow="fold")
    for row in lines[1:]:
        table.add_row(*row)
    _show(table, caption)


def _show(*parts: "Table | str") -> None:
    console = _console()
    with console.capture() as captured:
        for part in filter(None, parts):
            console.print(part, style="italic" if isinstance(part, str) else "")
    print(captured.get(), end="")  # not by the console, which ends the program if a pipe is closed


def _console() -> "Console":
    """Return a console that prints paths and names of classes as they are."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def _one_below_the_other(text: str) -> str:
    """Break a text at its spaces, into lines no longer than its longest word."""
    text = _encodable(text)
    longest = max(map(len, text.split()), default=1)
    return textwrap.fill(text, longest, break_on_hyphens=False)


def _least_width(rows: Sequence[Sequence[str]]) -> int:
    """Return the characters of a table whose first column is as narrow as can be read."""
    from rich.cells import cell_len

    first, *others = (
        max(cell_len(line) for cell in column for line in cell.split("\n"))
        for column in zip(*rows, strict=True)
    )
    return min(first, NARROWEST) + sum(others) + BORDERS * (1 + len(others)) + 1


def write_any_text() -> None:
    """Let stdout and stderr take every text, in any encoding, and halves of characters in paths."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=IN_ASCII)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    plain = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing)
    return "".join(plain), error.end


codecs.register_error(IN_ASCII, _in_ascii)


def _encodable(text: str) -> str:
    """Return a text as stdout will show it, whose length is that on the screen."""
    encoding = (sys.stdout and sys.stdout.encoding) or "utf-8"  # a closed stdout is None
    return text.encode(encoding, IN_ASCII).decode(encoding)


def leave_closed_pipes() -> bool:
    """Return whether the reader of stdout or stderr is gone, and write to nobody then."""
    streams = filter(None, (sys.stdout, sys.stderr))
    closed = [stream for stream in streams if _reader_is_gone(stream.fileno())]
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in closed:
        # What is buffered would otherwise be written, and fail again, when Python ends.
        os.dup2(nobody, stream.fileno())
    return bool(closed)


def _reader_is_gone(file: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
