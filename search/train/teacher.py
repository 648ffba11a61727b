"""What does a trained detector teach one that trains? (feature distillation on the pyramid)"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.artifacts import file_hash
from adapt.detector.file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from search.recipe.optimisation import ComputeRecipe
from search.recipe.recipe import Recipe
from search.train.placement import place
from search.train.world import World

LEAST_VARIANCE = 1e-6  # of a channel; one that hardly varies teaches nothing


@dataclass(frozen=True)
class TrainedFiles:
    """Trained detectors that a fine-tuning is given.

    Attributes:
        start: Whose parameters are mapped, pyramid and heads too; the pretrained source's if None.
        teacher: Whose pyramid is imitated; None for no teacher.
    """

    start: Path | None = None
    teacher: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those that there are."""
        return [file for file in (self.start, self.teacher) if file]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each, as a detector file names them."""
        named = {"start_sha256": self.start, "teacher_sha256": self.teacher}
        return {name: file_hash(file) for name, file in named.items() if file}


def check_teacher(recipe: Recipe, trained: TrainedFiles) -> None:
    """Check that a teacher is given if one is asked for, and the other way round.

    Raises:
        AdaptError: With the fix.
    """
    weight = recipe.finetune.teacher_weight
    if trained.teacher and not weight:
        raise AdaptError(
            f"finetune.teacher_weight is 0, so that teacher {trained.teacher} would change "
            "nothing; set it, such as to 6"
        )
    if weight and not trained.teacher:
        raise AdaptError(
            f"finetune.teacher_weight is {weight:g} and there is no teacher; pass --teacher with "
            "the trained detector of the source, or set it to 0"
        )


class Teacher:
    """A trained detector whose pyramid another one imitates on the images that it trains on.

    The teacher sees the same images, computes as in inference, and is not trained.

    Args:
        file: The trained detector; its backbone may be any.
        info: The detector that trains.
        compute: How both compute.
        world: The processes that train together.

    Raises:
        AdaptError: If the file cannot be read, or has another pyramid.
    """

    def __init__(
        self, file: Path, info: DetectorInfo, compute: ComputeRecipe, world: World
    ) -> None:
        model, of = load_detector(file)
        if of.detector.fpn_width != info.detector.fpn_width:
            raise AdaptError(
                f"teacher {file} has fpn_width {of.detector.fpn_width}, the detector to train has "
                f"{info.detector.fpn_width}; use a teacher of the same pyramid"
            )
        self._backbone: nn.Module = place(model, compute, world).backbone.eval()

    @contextmanager
    def compared(self, model: RetinaNet) -> Iterator[list[Tensor]]:
        """Yield a list that gets the loss of every forward pass of a detector meanwhile."""
        losses: list[Tensor] = []

        def compare(_: nn.Module, images: tuple[Tensor], pyramid: Mapping[Any, Tensor]) -> None:
            with torch.no_grad():
                wanted = self._backbone(*images)
            losses.append(pyramid_loss(pyramid, wanted))

        with model.backbone.register_forward_hook(compare):
            yield losses


def pyramid_loss(student: Mapping[Any, Tensor], teacher: Mapping[Any, Tensor]) -> Tensor:
    """Return 1 - r, averaged over channels and levels: 0 if all correlate, 1 if none does.

    r is Pearson's correlation of a channel of both pyramids over images and places, so that scale
    and offset of a channel are free (PKD, "General Distillation Framework for Object Detectors via
    Pearson Correlation Coefficient").

    Args:
        student: ``Tensor[N, C, H, W]`` by level.
        teacher: The same of the teacher, without gradients. Levels of one of them do not count.
    """
    losses = []
    for level in student.keys() & teacher.keys():
        of_both = _standardised(student[level]) * _standardised(teacher[level])
        losses.append(1 - of_both.mean((0, 2, 3)).mean())
    return torch.stack(losses).mean()


def _standardised(maps: Tensor) -> Tensor:
    """Return every channel with mean 0 and variance 1 over images and places, in float32."""
    maps = maps.float()
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    standardised: Tensor = (maps - mean) * (variance + LEAST_VARIANCE).rsqrt()
    return standardised
