"""Files as discs, transfers and editors damage them: other bytes, or other values inside."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapt.errors import AdaptError

Content = Any  # plain JSON content; tensors too in checkpoints
HUGE = 2**70
ODD: list[Content] = [
    *(None, True, False, 0, -1, 3, HUGE, -HUGE, 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "1", "../x", "/", "a\0b", "\ud800", "x" * 300),
    *([], [[]], [0], ["x"], [None], [1, 2, 3, 4], {}, {"x": 1}, {"": None}),
]


def sentence(read: Callable[[], object]) -> str:
    """Why a file is refused, empty if it is read; anything else than a sentence is a defect."""
    said = ""
    try:
        read()
    except AdaptError as error:
        said = str(error)
        if not said:
            raise
    assert "\n" not in said
    return said


def places(content: Content) -> list[tuple[Any, ...]]:
    """The keys that lead to every value inside of plain content, its own among them."""
    inner: list[tuple[Any, Content]] = []
    if isinstance(content, Mapping):
        inner = list(content.items())
    elif isinstance(content, list | tuple):
        inner = list(enumerate(content[:4]))  # the others are alike
    return [(), *((key, *place) for key, value in inner for place in places(value))]


def replaced(
    content: Content, place: tuple[Any, ...], change: Callable[[Any, Any], None]
) -> Content:
    """Plain content after `change(parent, key)` at a place."""
    if not place:
        return content
    key, *rest = place
    copy = list(content) if isinstance(content, list | tuple) else dict(content)
    if rest:
        copy[key] = replaced(copy[key], tuple(rest), change)
    else:
        change(copy, key)
    return copy


@st.composite
def changed_values(draw: st.DrawFn, content: Content) -> Content:
    """Plain content with one or two values replaced, removed, or put under another key."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(content)))
        odd, how = draw(st.sampled_from(ODD)), draw(st.sampled_from("rrrdk"))
        if not place:
            content = odd
            continue

        def change(parent: Any, key: Any, odd: Content = odd, how: str = how) -> None:
            value = parent.pop(key)
            if how == "r":
                parent.insert(key, odd) if isinstance(parent, list) else parent.update({key: odd})
            elif how == "k":
                parent.append(value) if isinstance(parent, list) else parent.update({"odd": value})

        content = replaced(content, place, change)
    return content


Edit = tuple[float, int, str, bytes]  # where, how many bytes, and what to do with them
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([1, 1, 4, 64, 4096]),
        st.sampled_from(["put", "put", "zero", "twice", "cut"]),
        st.binary(max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Bytes of a file after a cut, or with some replaced, taken out, zeroed or repeated."""
    for where, count, how, new in edits:
        start = int(where * len(data))
        taken, rest = data[start : start + count], data[start + count :]
        other = {"put": new, "zero": bytes(len(taken)), "twice": taken * 2}.get(how, b"")
        data = data[:start] if how == "cut" else data[:start] + other + rest
    return data


@dataclass(frozen=True)
class Form:
    """How the content of a kind of file is taken out, and other content put in."""

    read: Callable[[Path], Content]
    write: Callable[[Path, Content], object]


def _write_json(path: Path, content: Content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _toml(value: Content) -> str:
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value if one is not None)}]"
    return {"NaN": "nan", "Infinity": "inf"}.get(json.dumps(value), json.dumps(value))


def write_toml(path: Path, content: Content) -> None:
    entries = content.items() if isinstance(content, Mapping) else [("x", content)]
    lines = [f"{json.dumps(k)} = {_toml(v)}\n" for k, v in entries if v is not None]
    path.write_text("".join(lines))


def _detector_header(path: Path) -> Content:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["adapt"])


def _write_detector_header(path: Path, content: Content) -> None:
    save_file(load_file(path), path, metadata={"adapt": json.dumps(content)})


def _onnx_header(path: Path) -> Content:
    return json.loads(onnx.load(path).metadata_props[0].value)


def _write_onnx_header(path: Path, content: Content) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"adapt": json.dumps(content)})
    onnx.save(model, path)


COLUMNS = "unit, min_ms, p10_ms, p50_ms, p90_ms, samples, rounds, drifted, clock_mhz, temperature_c"
ROW = f"{COLUMNS}, throttled, time"


def _table(path: Path) -> Content:
    with closing(sqlite3.connect(path)) as connection:
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        rows = connection.execute(f"SELECT {ROW} FROM cost").fetchall()
    return {"meta": {k: json.loads(v) for k, v in meta.items()}, "cost": [list(r) for r in rows]}


def _write_table(path: Path, content: Content) -> None:
    """Write a table of the same columns without their types and rules."""
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE meta (key, value)")
        connection.execute(f"CREATE TABLE cost ({ROW})")
        content = content if isinstance(content, Mapping) else {}
        for key, value in dict(content.get("meta") or {}).items() if _maps(content, "meta") else ():
            connection.execute("INSERT INTO meta VALUES (?, ?)", (_cell(key), json.dumps(value)))
        for row in content.get("cost") or [] if isinstance(content.get("cost"), list) else []:
            cells = [_cell(value) for value in row][:12] if isinstance(row, list) else []
            cells += [None] * (12 - len(cells))
            connection.execute(f"INSERT INTO cost VALUES ({', '.join('?' * 12)})", cells)


def _maps(content: Content, key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _cell(value: Content) -> Content:
    """What SQLite can hold of a value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    small = isinstance(value, int) and abs(value) < 2**63
    return value if value is None or small or isinstance(value, float) else json.dumps(value)


def _checkpoint(path: Path) -> Content:
    return torch.load(path, weights_only=True)


def _write_checkpoint(path: Path, content: Content) -> None:
    torch.save(content, path)


JSON = Form(lambda path: json.loads(path.read_text()), _write_json)
SAFETENSORS = Form(_detector_header, _write_detector_header)
ONNX = Form(_onnx_header, _write_onnx_header)
SQLITE = Form(_table, _write_table)
CHECKPOINT = Form(_checkpoint, _write_checkpoint)
