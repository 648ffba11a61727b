"""Which members of TensorRT are simulated, with which arguments, in which release?

    python tests/write_tensorrt_signatures.py FOLDER

FOLDER has `api_<release>.json` of every release: for each class, its members and the signatures
that the bindings' docstrings tell. Of these, what :mod:`simulated_tensorrt` implements is written.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from simulated_tensorrt import CLASSES, ENUMS, SIGNATURES, VERSIONS

NO_MEMBERS = {"name", "value", "itemsize"}


def written(folder: Path) -> str:
    """Return the content of the file."""
    lists = {
        release: json.loads((folder / f"api_{release}.json").read_text()) for release in VERSIONS
    }
    return json.dumps({release: _of(api) for release, api in lists.items()}, indent=0) + "\n"


def _of(api: dict[str, Any]) -> dict[str, Any]:
    return {
        "classes": {name: _members(name, api[name]) for name in CLASSES},
        "enums": {
            name: sorted(
                m for m, kind in api[name].items() if kind == "attr" and m not in NO_MEMBERS
            )
            for name in ENUMS
            if name in api
        },
    }


def _members(name: str, listed: dict[str, str]) -> dict[str, str]:
    public = [m for m in dir(CLASSES[name]) if not m.startswith("_")]
    if "__init__" in vars(CLASSES[name]):
        public.append("__init__")
    return {m: _compact(m, listed[m]) for m in public if m in listed}


def _compact(member: str, text: str) -> str:
    """Return `a: int, b: str = None` of a docstring's first line."""
    if text == "attr":
        return text
    found = re.match(rf"{member}\(self: [\w.]+(?:, )?(.*)\) -> ", text)
    if found is None:
        return "overloaded"
    arguments = re.sub(r"typing(_extensions)?\.", "", found[1])
    arguments = re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.|nv\w+::", "", arguments)
    return arguments.replace("SupportsInt", "int").replace("buffer", "Buffer")


if __name__ == "__main__":
    SIGNATURES.write_text(written(Path(sys.argv[1])))
