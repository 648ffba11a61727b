"""Did a search decide, or are its candidates still about equally probable? (mean entropies)"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from search.derive.scores import Scores, doubt
from search.train.checkpoint import read_checkpoint

UNDECIDED = 0.9  # mean entropy above which a search has not decided, of 1
REMEDY = (
    "take more architecture steps (search.weights.epochs), a higher search.arch_lr or a --target, "
    "or compare it with random and scaled networks by `adapt study`"
)


def entropy_share(probabilities: Tensor) -> float:
    """Return the entropy as a share of the uniform distribution's; 0 is decided.

    Args:
        probabilities: Tensor[K].
    """
    if len(probabilities) < 2:
        return 0.0
    entropy = float(-(probabilities * probabilities.clamp_min(1e-12).log()).sum())
    return entropy / math.log(len(probabilities))


def mean_entropy(distributions: Sequence[Tensor]) -> float:
    """Return the mean :func:`entropy_share` of all distributions that leave a choice."""
    shares = [entropy_share(p) for p in distributions if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class Decision:
    """How far a search has decided; 0 is decided, 1 is as undecided as at its start.

    Attributes:
        op_entropy: :func:`mean_entropy` of the operations.
        width_entropy: That of the widths.
    """

    op_entropy: float
    width_entropy: float

    @classmethod
    def of(cls, ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor]) -> Self:
        """Return it for softmax of alpha per block and position, and softmax of beta per block."""
        return cls(mean_entropy([p for block in ops for p in block]), mean_entropy(widths))

    @classmethod
    def stored(cls, path: Path) -> Self:
        """Return that of the search in a ``supernet.pt``, of whichever version.

        Raises:
            AdaptError: If the file is missing or damaged.
        """
        states = read_checkpoint(path, "supernet")["states"]["detector"]
        ops, widths = (
            [t.softmax(0) for name, t in states.items() if name.startswith(f"backbone.body.{kind}")]
            for kind in ("alphas.", "betas.")
        )
        return cls.of([ops], widths)

    @property
    def doubt(self) -> str:
        """What a finished search must say of its networks, in one line; empty if it decided."""
        if max(self.op_entropy, self.width_entropy) <= UNDECIDED:
            return ""
        return (
            f"the search did not decide (mean entropy {self.op_entropy:.2f} of operations, "
            f"{self.width_entropy:.2f} of widths; 1 is undecided, above {UNDECIDED} is too much): "
            "its arg max and its budgets rank by little more than noise and the gradient of the "
            f"cost; {REMEDY}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        entropies = {"op_entropy": self.op_entropy, "width_entropy": self.width_entropy}
        return {**entropies, "undecided": bool(self.doubt)}


def decided(searched: Path) -> dict[str, Any]:
    """Return how far networks that are derived from a file can be relied on, as JSON content.

    Args:
        searched: ``supernet.pt``, or scores.

    Returns:
        Entropies of a search, or the Kendall tau of scores; and ``doubt``, a sentence or empty.

    Raises:
        AdaptError: If the file is missing or damaged.
    """
    if searched.suffix != ".json":
        decision = Decision.stored(searched)
        return {**decision.to_dict(), "doubt": decision.doubt}
    _, content = Scores.load(searched)
    certificate = content.get("certificate")
    return {
        "tau": certificate["tau"] if certificate else None,
        "doubt": doubt(certificate, searched),
    }


def undecided_entry(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry of a log is the last one of a search that did not decide."""
    return Decision(entry["op_entropy"], entry["width_entropy"]).doubt in entry["warnings"]
