"""Which file answers which question? Writes the tree of `docs/code.md` from the sources.

python docs/tree.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "code.md"
FOLDERS = ("adapt", "search", "export", "bench")  # in the order in which data pass through them
BEGIN, END = "<!-- tree: written by docs/tree.py -->\n", "<!-- end of the tree -->\n"
COLUMN = 28  # where the questions start


def tree() -> str:
    """Return all source files with their questions, as a block of Markdown."""
    lines = [_line("cli.py", ROOT / "cli.py", 0)]
    for folder in FOLDERS:
        lines += _folder(ROOT / folder, 0)
    return "\n".join(["```text", *lines, "```\n"])


def page_with(page: str, block: str) -> str:
    """Return a page with another tree between its two marks.

    Raises:
        ValueError: If the page lacks a mark.
    """
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{PAGE} lacks the line {BEGIN.strip()!r} or {END.strip()!r}")
    return f"{before}{BEGIN}{block}{END}{after}"


def _folder(folder: Path, depth: int) -> Iterator[str]:
    """Yield a package, its modules, then its packages, each in alphabetical order."""
    yield _line(f"{folder.name}/", folder / "__init__.py", depth)
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield _line(path.name, path, depth + 1)
    for path in sorted(folder.glob("*/__init__.py")):
        yield from _folder(path.parent, depth + 1)


def _line(name: str, path: Path, depth: int) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{'  ' * depth + name:{COLUMN}}{docstring.partition(chr(10))[0]}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), tree()), encoding="utf-8")
