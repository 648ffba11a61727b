"""What does a study compare? (arms, seeds, budget; named studies are TOML files)"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from adapt.artifacts import named_toml, read_text
from adapt.errors import FORBID_UNKNOWN, AdaptError
from adapt.network.published import NETWORKS
from search.recipe.content import merged, validated
from search.recipe.recipe import Recipe

STUDIES = Path(__file__).parent / "studies"
Rule = Literal[
    "source",
    "published",
    "width",
    "compound",
    "expansion",
    "random",
    "random-joint",
    "random-best-of-k",
    "random-joint-best-of-k",
    "softmax",
    "scores",
    "joint",
]
FACTOR = ("width", "compound", "expansion")  # rules that have one; it may be fixed
SCORED = ("scores", "joint")  # rules that sum scores of a trained source
SEARCHED = ("softmax", *SCORED)  # rules that a space's choices are scored for
JOINT = ("random-joint", "random-joint-best-of-k", "joint")  # rules that choose a setting too
RACED = ("random-best-of-k", "random-joint-best-of-k")  # rules with a race of random networks
TRAINED = (*RACED, *SEARCHED)  # rules that train before they choose
CHOSEN_ANEW = ("random", "random-joint", *TRAINED)  # rules with another network per seed
DEFAULT_ARMS = ("scores", "softmax", "random", "random-best-of-k", "width", "compound", "source")


@dataclass(frozen=True)
class Arm:
    """One way to a trained detector.

    Attributes:
        name: Its name in the report; the rule's if empty.
        network: How the network is chosen. ``source`` leaves it alone, ``published`` takes another
            paper's. ``width`` multiplies the widths of all blocks by one factor, ``compound``
            also pyramid and head depth; ``expansion`` gives all operations the expansion
            ``factor``. ``random`` draws a network that fills the budget, ``random-joint`` also the
            setting of pyramid, heads and input in which it does, ``random-best-of-k`` is the best
            of several drawn ones after a training for which they get as much computation as a
            search, ``random-joint-best-of-k`` of several drawn with their settings, which get as
            many epochs as ``joint`` takes, ``softmax`` is the recipe's search, ``scores`` sums
            what each choice costs a trained source in loss, and ``joint`` chooses pyramid, heads
            and input too, by these sums and a race.
        factor: Of width, compound or expansion; 0 finds the one that meets the budget.
        draw: Of ``random`` and ``random-joint``, which of a seed's networks: several arms can draw
            several.
        architecture: Of ``published`` the network's name, such as ``fna``.
        recipe: Fields of the recipe that this arm has otherwise, by section.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    network: Rule
    name: str = ""
    factor: float = 0.0
    architecture: str = ""
    draw: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.factor and self.network not in FACTOR:
            raise AdaptError(f"an arm by {self.network!r} has no factor, got {self.factor}")
        if self.network == "published" and self.architecture not in NETWORKS:
            raise AdaptError(
                f"an arm by 'published' needs an architecture, one of {', '.join(NETWORKS)}, got "
                f"{self.architecture!r}"
            )
        if self.architecture and self.network != "published":
            raise AdaptError(
                f"an arm by {self.network!r} has no architecture, got {self.architecture!r}"
            )
        if self.draw and self.network not in ("random", "random-joint"):
            raise AdaptError(f"an arm by {self.network!r} draws no network, got draw {self.draw}")
        if self.draw < 0:
            raise AdaptError(f"draw must be at least 0, got {self.draw}")
        if self.factor < 0 or (self.network == "expansion" and self.factor != int(self.factor)):
            raise AdaptError(
                f"factor must be positive, of expansion a whole number, got {self.factor}"
            )
        if self.network == "expansion" and not self.factor:
            raise AdaptError("an arm by 'expansion' needs a factor, such as 3")

    @property
    def label(self) -> str:
        """Name in files and reports."""
        drawn = f"{self.network} {self.draw}" if self.draw else self.network
        return self.name or self.architecture or drawn

    @property
    def meets_budget(self) -> bool:
        """Whether its network is chosen to meet the budget."""
        return self.network not in ("source", "published") and not self.factor


@dataclass(frozen=True)
class Study:
    """Arms that are compared on the same seeds.

    Attributes:
        arms: The arms; every pair is compared, and the first one decides which others are dropped.
        question: What it is to find out, for the report.
        seeds: Seeds; each divides the images, searches, draws networks, initial heads and batches
            anew, the same way for all arms.
        first_seed: The first of the seeds. A study that confirms another one takes seeds that
            nothing was looked at.
        budget: Latency that networks have to meet, such as ``12ms`` or ``75%`` of the source's.
        recipe: Fields of the recipe that all arms have otherwise, by section.
        drop_after: Seeds after which an arm may be dropped; 0 for never, which a study needs whose
            question is about pairs without the first arm.
        drop_below: Points of AP by which the interval of an arm must lie below the first arm's to
            be dropped.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    arms: tuple[Arm, ...]
    question: str = ""
    seeds: int = 6
    first_seed: int = 0
    budget: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    drop_after: int = 4
    drop_below: float = 2.0

    def __post_init__(self) -> None:
        files = [file_name(arm.label) for arm in self.arms]
        if len(files) < 1 or len(set(files)) < len(files):
            raise AdaptError(f"a study needs arms of different names, got {', '.join(files)}")
        if self.seeds < 1:
            raise AdaptError(f"seeds must be at least 1, got {self.seeds}")
        if self.first_seed < 0:
            raise AdaptError(f"first_seed must be at least 0, got {self.first_seed}")
        sized = [arm.label for arm in self.arms if arm.meets_budget]
        if sized and not self.budget:
            raise AdaptError(
                f"arm {sized[0]!r} has to meet a budget; pass one, such as --budget 75% of the "
                "source's latency, or 12ms"
            )

    @property
    def all_seeds(self) -> range:
        """The seeds in order."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @classmethod
    def load(cls, name_or_path: str) -> "Study":
        """Read a study by name, or a TOML file by path.

        Raises:
            AdaptError: If it does not exist, or a field is unknown or wrong.
        """
        path = named_toml(name_or_path, STUDIES, "study")
        try:
            return validated(cls, tomllib.loads(read_text(path, "study")), f"study {path}")
        except tomllib.TOMLDecodeError as error:
            raise AdaptError(f"study {path} is not TOML: {error}") from error

    def with_changes(self, **changes: Any) -> "Study":
        """Return the study with other fields, where they are not None.

        Raises:
            AdaptError: If a value is wrong.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)

    def with_epochs(self, epochs: int | None) -> "Study":
        """Return the study with another number of epochs of every training, if one is given."""
        if epochs is None:
            return self
        changes = {"finetune": {"epochs": epochs}}
        arms = tuple(replace(arm, recipe=merged(arm.recipe, changes)) for arm in self.arms)
        return replace(self, arms=arms, recipe=merged(self.recipe, changes))

    def recipe_of(self, arm: Arm, recipe: Recipe, seed: int) -> Recipe:
        """Return the recipe of one training.

        Raises:
            AdaptError: If a changed field is unknown or wrong.
        """
        for changes in (self.recipe, arm.recipe):
            recipe = recipe.changed(changes, f"arm {arm.label!r}")
        return recipe.changed({"seed": seed}, "study")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def arms_named(names: Sequence[str]) -> tuple[Arm, ...]:
    """Return arms by the names of their rules, the recipe's own otherwise.

    Raises:
        AdaptError: If a name is none of a rule, or its factor would have to be given.
    """
    known = [rule for rule in get_args(Rule) if rule not in ("expansion", "published")]
    for name in names:
        if name not in known:
            raise AdaptError(f"unknown arm {name!r}; use {', '.join(known)}, or a study's file")
    return tuple(Arm(name) for name in names)  # type: ignore[arg-type]


def file_name(name: str) -> str:
    """Return a name as part of a file's name: letters, digits, dots, underscores and dashes."""
    return re.sub(r"[^\w.]+", "-", name)
