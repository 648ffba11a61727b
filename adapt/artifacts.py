"""How are result files written and read? (whole or not at all, with a header of what they are)"""

import errno
import hashlib
import json
import os
import pickle
import platform
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from adapt.errors import AdaptError

Content = TypeVar("Content")
LATER = {"later": True}  # metadata of a field; see :func:`identity`
# What indexing and converting content raises that is of other types than expected.
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
# What reading a PyTorch file raises that is damaged or none.
UNREADABLE = (*DAMAGE, OSError, EOFError, pickle.UnpicklingError, struct.error)
GZIP = b"\x1f\x8b"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE = 2**20  # bytes; what a library's last, failed write was of is unknown


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` on success.

    A crash or an exception leaves neither a partial file nor a changed old one.

    Raises:
        AdaptError: If the folder cannot be created or written to, or the disk is full.
    """
    temporary = _temporary_beside(path)
    try:
        yield temporary
        # mkstemp makes a private file, and some libraries put one of their own in its place.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except Exception as error:
        reason = _no_space(error, temporary)
        if not reason:
            raise
        raise AdaptError(
            f"cannot write {path}: {reason}; free some space or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _no_space(error: Exception, written: Path) -> str:
    """Return why there is no space for a file; empty if the error has another cause.

    Libraries that write in C++ (torch.save, safetensors, ONNX) tell it as errors of their own: a
    few more bytes meet the system's.
    """
    if isinstance(error, AdaptError):
        return ""
    if not isinstance(error, OSError):
        try:
            with written.open("ab") as file:
                file.write(bytes(PROBE))
        except OSError as met:
            error = met
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number in NO_SPACE else ""


def make_folder(folder: Path) -> None:
    """Create a folder for results, and check that it can be written to.

    Raises:
        AdaptError: If it cannot.
    """
    _temporary_beside(folder / "probe").unlink()


def make_place(path: Path) -> None:
    """Create the folder of a result file, and check that the file can be written there.

    Raises:
        AdaptError: If it cannot.
    """
    _temporary_beside(path).unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, which must not exist, and rename it on success.

    Raises:
        AdaptError: If it cannot be created.
    """
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as parent:
        temporary = Path(parent) / folder.name
        temporary.mkdir()
        yield temporary
        os.replace(temporary, folder)


def _temporary_beside(path: Path) -> Path:
    if path.is_dir():
        raise AdaptError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp, not a fixed name: two runs may write the same artifact at once.
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(handle)
    except OSError as error:
        raise AdaptError(
            f"cannot write {path}: {error.strerror}; choose a writable folder with --out"
        ) from error
    return Path(name)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        # Names of files can hold halves of characters; as escapes, JSON gives them back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file; ``what`` names its content in the error.

    UTF-16 and UTF-32 are recognised as JSON's standard recognises them, with or without a mark.

    Raises:
        AdaptError: If the file is missing, unreadable or not such text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AdaptError(f"{what} {path} does not exist; check the path") from error
    except OSError as error:
        raise AdaptError(f"{what} {path} is not readable ({error}); check the file") from error
    if data.startswith(GZIP):
        raise AdaptError(f"{what} {path} is compressed; unpack it with gzip -d")
    try:
        # Editors and PowerShell on Windows write UTF-16, and marks.
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise AdaptError(f"{what} {path} is no UTF-8 text ({error}); save it as UTF-8") from error
    return text.replace("\r\n", "\n")


def named_toml(name_or_path: str, presets: Path, what: str, others: Sequence[str] = ()) -> Path:
    """Return the TOML file of a preset, or that of a path.

    Args:
        name_or_path: Name of a preset, or a path that ends in ``.toml``.
        presets: Folder of the presets' files.
        what: What the file describes, for the error.
        others: Names that are known without a file, for the error.

    Raises:
        AdaptError: If it is neither; with the names that there are.
    """
    path = presets / f"{name_or_path}.toml"
    if path.is_file():
        return path
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = ", ".join(sorted([*others, *(file.stem for file in presets.glob("*.toml"))]))
        raise AdaptError(
            f"unknown {what} {name_or_path!r}; use a preset ({known}) or the path of a .toml file"
        )
    return path


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; ``what`` names its content in the error.

    Raises:
        AdaptError: If the file is missing or not JSON.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise AdaptError(
        f"{what} {path} is not JSON ({reason}); it may be truncated or of another kind"
    )


def header(kind: str, **fields: Any) -> dict[str, Any]:
    """Return the self-description every artifact starts with."""
    return {"format": f"adapt-{kind}", "version": 1, "made_with": library_versions(), **fields}


def check_header(content: Any, kind: str, path: Path) -> dict[str, Any]:
    """Return ``content`` if it is an artifact of ``kind`` this version can read.

    Raises:
        AdaptError: If the format or the version does not fit.
    """
    format_name = content.get("format") if isinstance(content, Mapping) else None
    if format_name != f"adapt-{kind}":
        raise AdaptError(
            f"{path} is not an adapt {kind} file (its format is {format_name!r}); pass the file "
            "that `adapt` wrote for this step"
        )
    if str(content.get("version")) != "1":
        raise AdaptError(
            f"{path} has {kind} format version {content.get('version')!r}, this adapt reads "
            f"version 1; open it with the adapt that wrote it ({adapt_of(content)}), or write it "
            "again with this one"
        )
    return dict(content)


@contextmanager
def parsing(what: str, path: Path, fix: str) -> Iterator[None]:
    """Tell in one sentence what parsing the content of a damaged file raises.

    Args:
        what: What the file describes.
        path: The file.
        fix: What to do, as the end of the sentence.

    Raises:
        AdaptError: Instead of it; one that does not name the file says so then.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, AdaptError) and str(path) in str(error):
            raise
        raise AdaptError(f"{what} {path} is not valid: {_reason(error)}; {fix}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        own = first.get("ctx", {}).get("error")  # says itself what it got
        reason = str(own) if own else f"{first['msg']}, got {first['input']!r}"
        reason = f"{where}: {reason}" if where else reason
    else:
        missing = isinstance(error, KeyError) and error.args
        reason = f"{error.args[0]} is missing" if missing else str(error)
    return shorten(reason, 200) or type(error).__name__


@overload
def typed(kind: type[Content], content: Any) -> Content: ...
@overload
def typed(kind: Any, content: Any) -> Any: ...
def typed(kind: Any, content: Any) -> Any:
    """Return plain content as a dataclass, or another type, with every value of its own type.

    Raises:
        ValueError: If one is not, or is not finite.
    """
    return _adapter(kind).validate_python(content)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def adapt_of(content: Mapping[str, Any]) -> str:
    """Return the version of ``adapt`` that wrote an artifact, by its header."""
    made_with = content.get("made_with")
    found = made_with.get("adapt-detector") if isinstance(made_with, Mapping) else None
    return str(found or "unknown")


def content_hash(content: Any) -> str:
    """Return 16 hex digits that identify a JSON-serialisable value."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def identity(content: Any) -> Any:
    """Return the plain content that identifies a dataclass, to be hashed.

    It is what ``asdict`` returns, but a field that a later version added, with ``metadata=LATER``,
    is in it only if it differs from its default: artifacts without it keep their hash.
    """
    if not is_dataclass(content) or isinstance(content, type):
        return content
    values = {one.name: getattr(content, one.name) for one in fields(content)}
    left_out = {
        one.name
        for one in fields(content)
        if "later" in one.metadata and values[one.name] == _default(one)
    }
    return {name: identity(value) for name, value in values.items() if name not in left_out}


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions that influence results, without importing the libraries."""
    names = ("adapt-detector", "torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
