"""What does a checkpoint hold, and how does a killed training continue from it?"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import torch

from adapt.artifacts import UNREADABLE, adapt_of, atomic_path, check_header, header, parsing
from adapt.errors import AdaptError
from search.train.world import World


class Stateful(Protocol):
    """Whatever has a state to save: a model, an optimizer, a learning rate schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state."""


@dataclass(frozen=True)
class Checkpoint:
    """The file that a killed training continues from.

    Attributes:
        path: The file.
        kind: Its format.
        parts: What is saved and restored: model, optimizers, schedules, random numbers.
        identity: Hash of everything that defines the training; a file with another one is refused.
        fields: What else the file says; ``method`` is the version of how it trains, if there were
            several.
        optional: Parts that files of earlier versions lack; they stay as they are then.
    """

    path: Path
    kind: str
    parts: Mapping[str, Stateful]
    identity: str
    fields: Mapping[str, Any]
    optional: frozenset[str] = frozenset()

    def save(self, step: int) -> None:
        """Write the state of every part after ``step`` steps, atomically."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        content = header(self.kind, step=step, identity=self.identity, **self.fields)
        with atomic_path(self.path) as temporary:
            torch.save({**content, "states": states}, temporary)

    def resume(self, world: World) -> int:
        """Restore every part from the file, if there is one.

        Returns:
            The number of steps already taken; 0 without a file.

        Raises:
            AdaptError: If it is damaged or of another training, or the processes do not agree.
        """
        start = self._restored_step()
        world.agree((start, self.identity), "the last checkpoint")
        return start

    def _restored_step(self) -> int:
        for leftover in self.path.parent.glob(f".{self.path.name}.*"):
            leftover.unlink(missing_ok=True)  # of a run that was killed while it wrote
        if not self.path.is_file():
            return 0
        content = read_checkpoint(self.path, self.kind)
        self._check_method(content)
        if content.get("identity") != self.identity:
            raise AdaptError(
                f"{self.path} belongs to another run (by adapt {adapt_of(content)}; its recipe, "
                "data or cost table differ); choose another --out, or delete it to start over"
            )
        with parsing("checkpoint", self.path, "delete it to start over"):
            states = content["states"]
            for name, part in self.parts.items():
                if name in states or name not in self.optional:
                    part.load_state_dict(states[name])
            return int(content["step"])

    def _check_method(self, content: Mapping[str, Any]) -> None:
        begun, now = content.get("method", 1), self.fields.get("method", 1)
        if begun != now:
            raise AdaptError(
                f"{self.path} was begun by an adapt ({adapt_of(content)}) that trains by another "
                f"method (version {begun}, this adapt has version {now}; see the changelog), so it "
                "cannot go on here; choose another --out, or delete it to start over"
            )


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        AdaptError: If the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise AdaptError(f"{kind} checkpoint {path} does not exist; run the step that writes it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = shorten(str(error), 200) or type(error).__name__
        raise AdaptError(
            f"{kind} checkpoint {path} is damaged or foreign ({reason}); delete it to start over"
        ) from error
    return check_header(content, kind, path)


class RandomState:
    """The state of PyTorch's global random number generators, as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the CPU's and the GPU's generator."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state, as far as this machine has the devices."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class Clock:
    """Tells when the next checkpoint, or plot, is due.

    Args:
        minutes: Least minutes from one to the next; 0 for one after every step.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time, and start anew if so."""
        now = time.monotonic()
        due = now - self._last >= self._seconds
        if due:
            self._last = now
        return due
