"""What does a recipe consist of, how is it read, and when are two runs the same?

The defaults are the paper's (section IV-A), and where it is silent those of its ancestor FNA;
but the milestones of the fine-tuning are the usual ones of 24 epochs.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from adapt.architecture import Architecture
from adapt.artifacts import LATER, content_hash, file_hash, identity, named_toml, read_text
from adapt.cost.detector_space import DetectorSpace
from adapt.data.augmentation import NONE, Augmentation
from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig, RetinaNetConfig
from adapt.errors import FORBID_UNKNOWN, AdaptError
from adapt.runtime import Precision, Runtime
from adapt.sources import source_named, with_source_widths
from adapt.space import SearchSpace
from search.recipe.content import changed, merged, validated
from search.recipe.joint import JointRecipe, Setting
from search.recipe.optimisation import (
    ComputeRecipe,
    FinetuneRecipe,
    SearchRecipe,
    check_not_negative,
    check_positive,
)
from search.recipe.two_stages import check_two_stages

PRESETS = Path(__file__).parent / "presets"
Init = Literal["imagenet", "scratch"]


@dataclass(frozen=True)
class DataRecipe:
    """Which images are used, and how they are loaded.

    Attributes:
        root: Data set (COCO, VOC or YOLO), relative to the recipe file.
        train: Split for search and fine-tuning.
        val: Split for evaluation.
        test: Split that the benchmark reports; ``val`` if empty.
        flip: Whether training images are flipped at random.
        workers: Processes that load images; 0 loads in the training process.
        repair: Whether annotations that cannot be used (boxes of no size or outside of their image,
            annotations of unknown images) are left out, and boxes that stick out of their image
            cut, instead of refusing the data set.
        cache_mb: Memory for decoded images of every split; 0 decodes every time.
        augment: How training images are changed, besides being flipped.
        ignore_crowds: Whether nothing is learned on boxes around groups, as COCO's evaluation
            counts nothing there; they are background otherwise.
        rare: Share of the training images below which a class is rare: its images are shown more
            often (LVIS uses 0.001); 0 shows all alike.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    root: str = ""
    train: str = "train"
    val: str = "val"
    test: str = ""
    flip: bool = True
    workers: int = 8
    cache_mb: int = 0
    repair: bool = False
    augment: Augmentation = field(default=NONE, metadata=LATER)
    ignore_crowds: bool = field(default=False, metadata=LATER)
    rare: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("workers", "cache_mb"):
            check_not_negative(name, getattr(self, name))
        if not 0 <= self.rare <= 1:
            raise ValueError(f"rare must be a share from 0 to 1, got {self.rare}")

    @property
    def benchmark(self) -> str:
        """The split that the benchmark reports."""
        return self.test or self.val


@dataclass(frozen=True)
class SpaceRecipe:
    """Which networks are searched.

    Attributes:
        preset: Name of a preset, or path of a TOML file.
        width_grid: Only widths that are multiples of this, the ends of each range, and the source's
            own width within it are candidates; 1 keeps all of Table I.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    preset: str = "mobilenet_v2"
    width_grid: int = 1

    def __post_init__(self) -> None:
        check_positive("width_grid", self.width_grid)

    def load(self) -> SearchSpace:
        """Return the search space; without the source's widths nothing could be left alone."""
        return with_source_widths(SearchSpace.load(self.preset).on_grid(self.width_grid))


@dataclass(frozen=True)
class DeviceRecipe:
    """Where the detector runs and how it is measured.

    Attributes:
        runtime: Runtime of the deployed detector.
        name: Model name of the processor or GPU, as ``adapt doctor`` prints it; a cost table of
            another one is refused. Empty means this machine's; name it to search elsewhere than
            where the table was measured.
        precision: Precision of weights and feature maps.
        batch: Images per call.
        threads: Threads of a CPU runtime.
        rounds: Rounds of the final benchmark.
        max_ap_drop: Points of AP, of 100, by which a deployed file may fall behind fp32 PyTorch on
            ``data.val`` in ``adapt run``.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    runtime: Runtime = "ort-cpu"
    name: str = ""
    precision: Precision = "fp32"
    batch: int = 1
    threads: int = 1
    rounds: int = 10
    max_ap_drop: float = 0.5

    def __post_init__(self) -> None:
        for name in ("batch", "threads", "rounds"):
            check_positive(name, getattr(self, name))
        check_not_negative("max_ap_drop", self.max_ap_drop)


@dataclass(frozen=True)
class Recipe:
    """A whole run; the defaults are the paper's.

    Attributes:
        name: Name of the recipe and of its output folder.
        seed: Seed of everything that is random.
        init: ``imagenet`` or, only if asked for, ``scratch``.
        weights: Weight file of the source; the published one if empty.
        cost_size: (height, width) at which MAdds are counted; the input's if left out.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    name: str = "paper"
    seed: int = 0
    init: Init = "imagenet"
    weights: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    space: SpaceRecipe = field(default_factory=SpaceRecipe)
    input: InputSize = field(default_factory=lambda: InputSize(800, 1333, "shortest-edge"))
    cost_size: tuple[int, int] | None = None
    detector: RetinaNetConfig = field(default_factory=RetinaNetConfig)
    search: SearchRecipe = field(default_factory=SearchRecipe)
    finetune: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    device: DeviceRecipe = field(default_factory=DeviceRecipe)
    compute: ComputeRecipe = field(default_factory=ComputeRecipe)
    joint: JointRecipe = field(default_factory=JointRecipe, metadata=LATER)

    def __post_init__(self) -> None:
        check_not_negative("seed", self.seed)
        if self.name in ("", ".", "..") or re.search(r"[/\\\0]", self.name):
            raise ValueError(
                f"name must name a folder for results and lead to no other, got {self.name!r}; "
                "use one without slashes"
            )
        self.data.augment.check(self.input)
        asked = {"detector.head": [self.detector.head], "joint.head": self.joint.head}
        for name, heads in asked.items():
            if "faster-rcnn" in heads:
                check_two_stages(name, self.device.runtime)

    @classmethod
    def load(cls, name_or_path: str) -> "Recipe":
        """Read a recipe by preset name (``paper``, ``demo``) or by path.

        Raises:
            AdaptError: If it does not exist or a field is unknown or wrong.
        """
        if name_or_path == "paper":
            return cls(cost_size=(800, 1088))
        path = named_toml(name_or_path, PRESETS, "recipe", ("paper",))
        try:
            content = tomllib.loads(read_text(path, "recipe"))
        except tomllib.TOMLDecodeError as error:
            raise AdaptError(f"recipe {path} is not TOML: {error}") from error
        return validated(cls, content, f"recipe {path}").relative_to(path.parent)

    def relative_to(self, folder: Path) -> "Recipe":
        """Return the recipe with its paths resolved against ``folder``."""
        root = str(folder / Path(self.data.root).expanduser()) if self.data.root else ""
        weights = str(folder / Path(self.weights).expanduser()) if self.weights else ""
        space = self.space
        if space.preset.endswith(".toml"):
            space = replace(space, preset=str(folder / Path(space.preset).expanduser()))
        return replace(self, data=replace(self.data, root=root), weights=weights, space=space)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Recipe":
        """Read what :meth:`to_dict` wrote."""
        return TypeAdapter(cls).validate_python(content)

    @property
    def search_hash(self) -> str:
        """16 hex digits of everything that a search depends on."""
        settings = self._hash(without=("name", "finetune", "device", "space", "joint"))
        # The space's content, not its file's name: users edit the file.
        content = [settings, self.space.load().hash]
        # The one field of the fine-tuning that a search reads too.
        return content_hash([*content, "principal"] if self.finetune.principal else content)

    @property
    def finetune_hash(self) -> str:
        """16 hex digits of everything that a fine-tuning depends on, but the architecture."""
        return self._hash(without=("name", "space", "search", "device", "cost_size", "joint"))

    def _hash(self, without: tuple[str, ...]) -> str:
        content = {k: v for k, v in identity(self).items() if k not in without}
        content["compute"] = self.compute.meaning
        # Where the data lie and how they are loaded changes no result.
        kept = ("train", "flip", "repair", "augment", "ignore_crowds", "rare")
        content["data"] = {k: v for k, v in content["data"].items() if k in kept}
        weights = Path(self.weights)
        content["weights"] = file_hash(weights) if self.weights and weights.is_file() else ""
        return content_hash(content)

    def changed(self, changes: Mapping[str, Any], what: str) -> "Recipe":
        """Return the recipe with other fields, given as in a recipe's file.

        Args:
            changes: Values, and by the name of a section those of its fields.
            what: Who changes them, for errors.

        Raises:
            AdaptError: If a field is unknown or a value wrong.
        """
        return validated(Recipe, merged(self.to_dict(), changes), what)

    def with_data(self, root: Path | None) -> "Recipe":
        """Return the recipe with another data set, if one is given."""
        return replace(self, data=replace(self.data, root=str(root or self.data.root)))

    def split(self, name: str) -> CocoSplit:
        """Load a split of the data set.

        Raises:
            AdaptError: If the recipe names no data set, or the split is missing or not sound.
        """
        if not self.data.root:
            raise AdaptError(
                f"recipe {self.name!r} names no data set; set data.root or pass --data"
            )
        root = Path(self.data.root)
        if not root.exists():
            raise AdaptError(
                f"data set {root} of recipe {self.name!r} does not exist; correct data.root, which "
                "is seen from the recipe's file, or --data"
            )
        return load_split(root, name, repair=self.data.repair)

    def num_classes(self) -> int:
        """Return the number of object classes of the training split."""
        return len(self.split(self.data.train).class_names)

    def with_search(self, **changes: Any) -> "Recipe":
        """Return the recipe with other fields of ``search``, where they are not None.

        Raises:
            AdaptError: If a value is wrong.
        """
        return replace(self, search=changed(self.search, changes))

    def with_compute(self, **changes: Any) -> "Recipe":
        """Return the recipe with other fields of ``compute``, where they are not None.

        Raises:
            AdaptError: If a value is wrong.
        """
        return replace(self, compute=changed(self.compute, changes))

    def with_accumulate(self, search: int | None = None, finetune: int | None = None) -> "Recipe":
        """Return the recipe with other numbers of parts of a batch, where they are not None.

        Raises:
            AdaptError: If a number does not divide the batch.
        """
        weights = changed(self.search.weights, {"accumulate": search})
        return replace(
            self,
            search=replace(self.search, weights=weights),
            finetune=changed(self.finetune, {"accumulate": finetune}),
        )

    def with_device(
        self,
        runtime: Runtime | None = None,
        precision: Precision | None = None,
        batch: int | None = None,
        threads: int | None = None,
        name: str | None = None,
    ) -> "Recipe":
        """Return the recipe for another runtime, precision, batch, number of threads or device."""
        device = replace(
            self.device,
            runtime=runtime or self.device.runtime,
            precision=precision or self.device.precision,
            batch=batch or self.device.batch,
            threads=threads or self.device.threads,
            name=name or self.device.name,
        )
        return replace(self, device=device)

    def with_grid(self, grid: int | None) -> "Recipe":
        """Return the recipe with another width grid, if one is given."""
        space = replace(self.space, width_grid=grid or self.space.width_grid)
        return replace(self, space=space)

    def with_init(self, init: Init | None, weights: Path | None) -> "Recipe":
        """Return the recipe with another initialisation or weight file, if one is given."""
        return replace(
            self, init=init or self.init, weights=str(weights) if weights else self.weights
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)

    @property
    def source(self) -> Architecture:
        """The pretrained backbone that is adapted.

        Raises:
            AdaptError: If the space names one that is unknown.
        """
        return source_named(self.space.load().source)

    @property
    def setting(self) -> Setting:
        """Everything of its detectors but backbone and classes."""
        return Setting(self.detector, self.input)

    @property
    def settings(self) -> list[Setting]:
        """All settings that are searched together with the backbone; its own if none are.

        Raises:
            AdaptError: If a candidate is wrong.
        """
        return self.joint.settings(self.setting)

    def check_joint(self) -> None:
        """Check that there is something to choose together with the backbone.

        Raises:
            AdaptError: If not, a candidate is wrong, or a teacher could not teach all of them.
        """
        if len(self.settings) == 1:
            raise AdaptError(
                "there is one setting of pyramid, heads and input, so that nothing is chosen "
                "together with the backbone; give candidates under [joint], such as head_depth = "
                "[0, 1], or set search.choice to 'scores'"
            )
        widths = {setting.detector.fpn_width for setting in self.settings}
        if self.finetune.teacher_weight and widths != {self.detector.fpn_width}:
            raise AdaptError(
                f"a teacher has the pyramid of its pupils, and joint.fpn_width is "
                f"{list(self.joint.fpn_width)}; leave it out, or set finetune.teacher_weight to 0, "
                f"which is {self.finetune.teacher_weight:g}"
            )

    def detector_config(self, num_classes: int) -> DetectorConfig:
        """Return the detector for a data set's number of classes."""
        return DetectorConfig(num_classes, **self.detector.to_dict())

    def detectors(self, num_classes: int, size: InputSize | None = None) -> DetectorSpace:
        """Return all detectors that a search can choose from, at a fixed input size.

        Args:
            num_classes: Classes of the data set.
            size: The input size; that of deployed detectors if None.
        """
        config = self.detector_config(num_classes)
        return DetectorSpace(self.space.load(), config, size or self.input.fixed())

    def measured_size(self) -> InputSize:
        """Return the input size at which multiply-adds are counted."""
        return InputSize(*self.cost_size) if self.cost_size else self.input.fixed()
