"""How is plain content, such as a TOML file's, read into dataclasses, and changed?"""

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from adapt.errors import AdaptError

Content = TypeVar("Content")
UNKNOWN = "unexpected_keyword_argument"  # pydantic's word for a field that there is not


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain content with other values; those of a section it has are merged into it."""
    result = dict(content)
    for name, value in changes.items():
        inner = result.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            value = merged(inner, value)
        result[name] = value
    return result


def changed(part: Any, changes: dict[str, Any]) -> Any:
    """Return a dataclass with other fields, where they are not None.

    Raises:
        AdaptError: If a value is wrong.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        return replace(part, **given)
    except ValueError as error:
        raise AdaptError(str(error)) from error


def validated(cls: type[Content], content: Any, what: str) -> Content:
    """Read plain content, such as that of a TOML file, into a dataclass.

    Raises:
        AdaptError: With the first wrong or unknown field; ``what`` names the content.
    """
    try:
        return TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        # A misspelt field before the one that is missing for it.
        first = min(error.errors(), key=lambda one: one["type"] != UNKNOWN)
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise AdaptError(f"{what}: {where}: {_reason(cls, first)}") from error


def _reason(cls: Any, error: Any) -> str:
    if error["type"] == UNKNOWN:
        *parents, name = error["loc"]
        for parent in parents:
            cls = cls if isinstance(parent, int) else _part_type(cls, parent)
        known = [one.name for one in fields(cls)]
        alike = get_close_matches(str(name), known, n=1)
        meant = f"is {alike[0]} meant?" if alike else f"use one of {', '.join(known)}"
        return f"there is no such field; {meant}"
    of_recipe = error.get("ctx", {}).get("error")  # a recipe's ValueError says what it got
    return str(of_recipe) if of_recipe else f"{error['msg']}, got {error['input']!r}"


def _part_type(cls: Any, name: str) -> Any:
    """Return the dataclass of a field, or of the items of a tuple of them."""
    kind = get_type_hints(cls)[name]
    return get_args(kind)[0] if get_args(kind) else kind
