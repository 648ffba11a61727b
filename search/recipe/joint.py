"""Which pyramids, heads and inputs are searched together with the backbone?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from adapt.artifacts import parsing, read_json, typed
from adapt.data.images import InputSize
from adapt.detector.config import HeadKind, RetinaNetConfig
from adapt.errors import FORBID_UNKNOWN, AdaptError

# Of a detector, of ``[joint]``, and of a setting.
PARTS = ("fpn_width", "head_depth", "anchor_scales", "finest_level", "separable", "head")
CANDIDATES = (*PARTS, "input")
CHOSEN = (*PARTS, "anchor_size")


@dataclass(frozen=True)
class Setting:
    """Everything of a detector but its backbone and its classes.

    Attributes:
        detector: Pyramid and heads.
        input: The size of its input.
    """

    detector: RetinaNetConfig
    input: InputSize

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {"detector": self.detector.to_dict(), "input": self.input.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Setting":
        """Read what :meth:`to_dict` returned, which may be among other content.

        Raises:
            LookupError: If a part is missing.
            ValueError: If a value is wrong.
        """
        return cls(typed(RetinaNetConfig, content["detector"]), typed(InputSize, content["input"]))

    def changes(self) -> dict[str, Any]:
        """Return the fields of a recipe that give what can be chosen of this setting."""
        chosen = {name: getattr(self.detector, name) for name in CHOSEN}
        return {"detector": chosen, "input": self.input.to_dict()}

    def changed(self, changes: Mapping[str, Any]) -> "Setting":
        """Return this setting with what :meth:`changes` of another one returned."""
        detector = typed(RetinaNetConfig, {**asdict(self.detector), **changes["detector"]})
        return Setting(detector, typed(InputSize, changes["input"]))

    def __str__(self) -> str:
        config, size = self.detector, self.input
        scales = f"anchor_scales {config.anchor_scales}, " if config.anchor_scales != 3 else ""
        finest = f"finest_level {config.finest_level}, " if config.finest_level != 3 else ""
        separable = "separable, " if config.separable else ""
        kind = "" if config.head == "retinanet" else f"{config.head}, "
        return (
            f"{kind}{separable}head_depth {config.head_depth}, fpn_width {config.fpn_width}, "
            f"{scales}{finest}input {size.height}x{size.width}"
        )


def setting_of(path: Path, own: Setting) -> Setting:
    """Return the setting that the network of an architecture file was chosen together with.

    Args:
        path: The file.
        own: The recipe's own setting, which is meant if the file names none.

    Raises:
        AdaptError: If the file is not JSON, or the setting is not complete.
    """
    content = read_json(path, "architecture")
    with parsing("the setting of architecture", path, "derive the network again"):
        return own.changed(content["setting"]) if "setting" in content else own


@dataclass(frozen=True)
class JointRecipe:
    """What ``search.choice = "joint"`` chooses from, and how the choice is made.

    For every setting the network of the best scores within the budget is derived. These finalists
    race: all train for a few epochs, those of the highest AP on ``data.val`` for twice as many, and
    so on until one is left.

    Attributes:
        head: Candidates of ``detector.head``; none leaves the recipe's own.
        head_depth: Candidates of ``detector.head_depth``; none leaves the recipe's own.
        fpn_width: Candidates of ``detector.fpn_width``; none leaves the recipe's own.
        anchor_scales: Candidates of ``detector.anchor_scales``; none leaves the recipe's own.
        finest_level: Candidates of ``detector.finest_level``; none leaves the recipe's own.
        separable: Candidates of ``detector.separable``; none leaves the recipe's own.
        input: Candidates (height, width) of the letterbox; none leaves the recipe's own. Anchors
            are scaled with the root of its pixels, so that inputs of one shape keep their size on
            the objects.
        epochs: Epochs of the first round of the race.
        survivors: One in how many finalists trains on in the next round.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    head_depth: tuple[int, ...] = ()
    fpn_width: tuple[int, ...] = ()
    input: tuple[tuple[int, int], ...] = ()
    anchor_scales: tuple[int, ...] = ()
    head: tuple[HeadKind, ...] = ()
    finest_level: tuple[int, ...] = ()
    separable: tuple[bool, ...] = ()
    epochs: int = 2
    survivors: int = 3

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"joint.epochs must be at least 1, got {self.epochs}")
        if self.survivors < 2:
            raise ValueError(f"joint.survivors must be at least 2, got {self.survivors}")
        for name in CANDIDATES:
            candidates = getattr(self, name)
            if len(set(candidates)) < len(candidates):
                raise ValueError(f"joint.{name} has a candidate twice, got {list(candidates)}")

    @property
    def candidates(self) -> int:
        """Number of settings, at most."""
        return math.prod(max(1, len(getattr(self, name))) for name in CANDIDATES)

    def settings(self, own: Setting) -> list[Setting]:
        """Return all settings.

        Args:
            own: The recipe's own, from which come all fields without candidates.

        Raises:
            AdaptError: If a candidate is wrong, or inputs are searched and the recipe's own is not
                a letterbox.
        """
        if self.input and own.input.resize != "letterbox":
            raise AdaptError(
                f"joint.input needs an input that is a letterbox, got {own.input.resize!r}; set "
                "input.resize to 'letterbox'"
            )
        sizes = [InputSize(*size) for size in self.input] or [own.input]
        fields = [getattr(self, name) or (getattr(own.detector, name),) for name in PARTS]
        settings = [
            Setting(_with_anchors(own, size, **dict(zip(PARTS, chosen, strict=True))), size)
            for size, *chosen in product(sizes, *fields)
        ]
        return list(dict.fromkeys(settings))  # FCOS has no scales of anchors

    @property
    def raced_epochs(self) -> int:
        """Epochs of all trainings of a race, if every setting has a finalist."""
        return sum(count * epochs for count, epochs in self.rounds(self.candidates))

    def rounds(self, finalists: int) -> list[tuple[int, int]]:
        """Return of each round of the race how many train, and for how many epochs."""
        rounds, epochs = [], self.epochs
        while finalists > 1:
            rounds.append((finalists, epochs))
            finalists, epochs = -(-finalists // self.survivors), 2 * epochs
        return rounds


def _with_anchors(own: Setting, size: InputSize, **changes: Any) -> RetinaNetConfig:
    pixels = (size.height * size.width) / (own.input.height * own.input.width)
    anchor = max(1, round(own.detector.anchor_size * math.sqrt(pixels)))
    if changes["head"] == "fcos":
        changes["anchor_scales"] = own.detector.anchor_scales
    if changes["head"] in ("ssdlite", "faster-rcnn"):
        changes["separable"] = False  # all of SSDLite is, nothing of the other
    return replace(own.detector, anchor_size=anchor, **changes)
