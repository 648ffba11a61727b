"""Which network did an arm get with a seed, and how is it stored?"""

from dataclasses import dataclass
from pathlib import Path

from adapt.architecture import Architecture
from adapt.artifacts import check_header, header, parsing, read_json, typed, write_json
from adapt.errors import AdaptError
from bench.acceptance.scaling import Sized
from search.recipe.joint import Setting


@dataclass(frozen=True)
class Chosen:
    """A network of an arm.

    Attributes:
        sized: The network.
        measured_ms: Its latency when it was chosen; None if nothing had to be met.
        how: By which rule, in words.
        seconds: What finding it took, of training.
        budget_ms: The latency to meet; None if there is none.
    """

    sized: Sized
    measured_ms: float | None = None
    how: str = ""
    seconds: float = 0.0
    budget_ms: float | None = None

    def __str__(self) -> str:
        return f"{self.sized.setting}; {self.sized.architecture}; {self.how}"

    def off_budget(self, latency_ms: float, budget_ms: float | None = None) -> float:
        """Return by which share of the budget a latency exceeds it; 0 if there is no budget.

        Args:
            latency_ms: The latency.
            budget_ms: The budget, if it is another one than when the network was chosen.
        """
        return latency_ms / (budget_ms or self.budget_ms) - 1 if self.budget_ms else 0.0

    def save(self, path: Path, key: str) -> None:
        """Write it."""
        content = {
            "architecture": self.sized.architecture.to_dict(),
            **self.sized.setting.to_dict(),
            "measured_ms": self.measured_ms,
            "how": self.how,
            "seconds": self.seconds,
        }
        write_json(path, header("study-network", key=key, **content))

    @classmethod
    def load(cls, path: Path, key: str) -> "Chosen | None":
        """Read it; None if there is none yet.

        Raises:
            AdaptError: If the file is damaged, or of another budget, recipe or data set.
        """
        if not path.is_file():
            return None
        content = check_header(read_json(path, "network"), "study-network", path)
        if content.get("key") != key:
            raise AdaptError(
                f"{path} is of another budget, recipe or data set; choose another folder with "
                "--out, or delete it"
            )
        with parsing("network", path, "delete it, so that it is chosen again"):
            architecture = Architecture.from_dict(content["architecture"])
            sized = Sized(architecture, Setting.from_dict(content))
            measured_ms = typed(float | None, content["measured_ms"])
            how, seconds = typed(str, content["how"]), typed(float, content["seconds"])
        return cls(sized, measured_ms, how, seconds)


Networks = dict[tuple[str, int], Chosen]  # by arm and seed
