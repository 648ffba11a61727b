"""Which network did an arm get with a seed, and how is it stored?"""

from dataclasses import dataclass
from pathlib import Path

from adapt.architecture import Architecture
from adapt.artifacts import check_header, header, read_json, write_json
from adapt.detector.retinanet import RetinaNetConfig
from bench.study.scaling import Sized


@dataclass(frozen=True)
class Chosen:
    """A network of an arm.

    Attributes:
        sized: The network.
        measured_ms: Its latency when it was chosen; None if nothing had to be met.
        how: By which rule, in words.
        seconds: What finding it took, of training.
    """

    sized: Sized
    measured_ms: float | None = None
    how: str = ""
    seconds: float = 0.0

    def save(self, path: Path, key: str) -> None:
        """Write it."""
        content = {
            "architecture": self.sized.architecture.to_dict(),
            "detector": self.sized.detector.to_dict(),
            "measured_ms": self.measured_ms,
            "how": self.how,
            "seconds": self.seconds,
        }
        write_json(path, header("study-network", key=key, **content))

    @classmethod
    def load(cls, path: Path, key: str) -> "Chosen | None":
        """Read it if it was made from the same inputs.

        Raises:
            AdaptError: If the file is damaged.
        """
        if not path.is_file():
            return None
        content = check_header(read_json(path, "network"), "study-network", path)
        if content["key"] != key:
            return None
        architecture = Architecture.from_dict(content["architecture"])
        sized = Sized(architecture, RetinaNetConfig(**content["detector"]))
        return cls(sized, content["measured_ms"], content["how"], content["seconds"])


Networks = dict[tuple[str, int], Chosen]  # by arm and seed
