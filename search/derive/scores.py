"""What does each choice of a space cost in loss, and which network loses least in a budget?"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from adapt.architecture import Choices
from adapt.artifacts import check_header, header, parsing, read_json, typed, write_json
from adapt.cost.expectation import CostModel
from adapt.errors import FORBID_UNKNOWN, AdaptError
from adapt.space import SearchSpace
from search.derive.exact import Deriver

MOST_RISE = 1e12  # of a loss that a training survived
LEAST_TAU = 0.6  # below it, sums say too little of combinations


@dataclass(frozen=True)
class Scores:
    """Rise of the loss by each choice of a space.

    Attributes:
        ops: By block and position, one for each candidate operation.
        widths: By block, one for each candidate width.
        loss: Loss of the teacher.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    ops: tuple[tuple[tuple[float, ...], ...], ...]
    widths: tuple[tuple[float, ...], ...]
    loss: float

    def __post_init__(self) -> None:
        of_ops = chain.from_iterable(chain.from_iterable(self.ops))
        largest = max(map(abs, chain(of_ops, *self.widths)), default=0.0)
        if largest > MOST_RISE:
            raise ValueError(f"a choice is said to change the loss by {largest:g}")

    def rise(self, choices: Choices) -> float:
        """Return the sum over the choices of a network."""
        rise = sum(scores[k] for scores, k in zip(self.widths, choices.widths, strict=True))
        for block, chosen in zip(self.ops, choices.ops, strict=True):
            rise += sum(scores[index] for scores, index in zip(block, chosen, strict=True))
        return rise

    def check_fits(self, space: SearchSpace) -> None:
        """Check that there is a score for every choice of a space, and for no other.

        Raises:
            ValueError: If not.
        """
        choices = [[len(b.candidates(n)) for n in range(b.num_ops)] for b in space.blocks]
        scored = [[len(scores) for scores in block] for block in self.ops]
        if scored != choices or [*map(len, self.widths)] != [len(b.widths) for b in space.blocks]:
            raise ValueError(f"they are not of the choices of its space {space.name!r}")

    def deriver(self, model: CostModel) -> Deriver:
        """Return what finds the network of the least rise within a budget, exactly."""
        ops = [[-np.array(scores) for scores in block] for block in self.ops]
        return Deriver(model, ops, [-np.array(scores) for scores in self.widths])

    def save(self, path: Path, **content: Any) -> None:
        """Write a scores file.

        Args:
            path: The file.
            content: What else it is to say; ``recipe``, ``space``, ``class_names`` and ``identity``
                for networks to be derived from it, and its certificate.
        """
        scores = {"ops": self.ops, "widths": self.widths, "loss": self.loss}
        write_json(path, header("scores", **content, scores=scores))

    @classmethod
    def load(cls, path: Path, *, uncertified: bool = True) -> "tuple[Scores, dict[str, Any]]":
        """Read a scores file.

        Args:
            path: The file.
            uncertified: Whether it may rank combinations badly, or nobody knows how well.

        Returns:
            The scores, and the whole content.

        Raises:
            AdaptError: If it is missing, damaged or of another kind, or has no good certificate.
        """
        content = check_header(read_json(path, "scores"), "scores", path)
        with parsing("scores", path, "score again"):
            loaded = typed(cls, content["scores"])
            found = doubt(content.get("certificate"), path)
        if not uncertified and found:
            raise AdaptError(f"{found}, or pass --uncertified")
        return loaded, content


def doubt(certificate: Mapping[str, Any] | None, path: Path) -> str:
    """Return why sums of scores cannot be relied on, and what helps; empty if they can."""
    if certificate is None:
        return (
            f"{path} has no certificate, so nobody knows whether its sums rank networks; score "
            "again"
        )
    tau = typed(float, certificate["tau"])
    if tau >= LEAST_TAU:
        return ""
    return (
        f"sums of {path} rank random networks with a Kendall tau of {tau:.2f} only, "
        f"less than {LEAST_TAU}; train the detector that was scored for longer, score it on more "
        "images"
    )
