"""How does an interrupted training go on where it was?"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from adapt.artifacts import atomic_path, check_header, header
from adapt.errors import AdaptError


class Stateful(Protocol):
    """Model, optimizer or schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state."""


def save_checkpoint(path: Path, kind: str, parts: Mapping[str, Stateful], **fields: Any) -> None:
    """Write the state of every part and the given fields to one file, atomically."""
    states = {name: part.state_dict() for name, part in parts.items()}
    with atomic_path(path) as temporary:
        torch.save({**header(kind, **fields), "states": states}, temporary)


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        AdaptError: If the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise AdaptError(f"{kind} checkpoint {path} does not exist; run the step that writes it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise AdaptError(
            f"{kind} checkpoint {path} is damaged or foreign ({reason}); delete it to start over"
        ) from error
    return check_header(content, kind, path)


def restore(content: dict[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Load the states of a checkpoint into its parts."""
    for name, part in parts.items():
        part.load_state_dict(content["states"][name])


def resume(path: Path, kind: str, parts: Mapping[str, Stateful], identity: str) -> int:
    """Restore a checkpoint if there is one of the same run.

    Args:
        path: The checkpoint.
        kind: Its format.
        parts: What to restore.
        identity: Hash of everything that defines the run.

    Returns:
        The number of steps already taken; 0 without a checkpoint.

    Raises:
        AdaptError: If the checkpoint is damaged or belongs to another run.
    """
    if not path.is_file():
        return 0
    content = read_checkpoint(path, kind)
    if content["identity"] != identity:
        raise AdaptError(
            f"{path} belongs to another run (its recipe, data or cost table differ); choose "
            "another --out, or delete it to start over"
        )
    restore(content, parts)
    return int(content["step"])
