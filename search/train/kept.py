"""Which weights does a fine-tuning write? (last, best, averaged, recalibrated)"""

from functools import cached_property
from typing import Any

from torchvision.models.detection import RetinaNet

from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset, epoch_batches
from adapt.detector.detect import batches_of
from adapt.detector.file import DetectorInfo
from adapt.detector.statistics import recalibrate
from adapt.runtime import exact_fp32
from search.recipe.recipe import Recipe
from search.train.average import weight_average
from search.train.placement import plain_detector
from search.train.validation import Validation, Weights
from search.train.world import World


class Kept:
    """What a fine-tuning will write, while it trains; as the recipe asks, more than its last step.

    Args:
        recipe: How it trains.
        info: The detector.
        images: Training images.
        val: Images to validate on; None for no validation.
        world: The processes.

    Attributes:
        average: Moving average of the weights; None if the recipe asks for none.
        validation: The APs on ``val`` so far; None without.
    """

    def __init__(
        self,
        recipe: Recipe,
        info: DetectorInfo,
        images: DetectionDataset,
        val: CocoSplit | None,
        world: World,
    ) -> None:
        self._recipe, self._info, self._images, self._world = recipe, info, images, world
        ema = recipe.finetune.ema
        self.average = weight_average(self._plain, ema) if ema else None
        self.validation = Validation(recipe, self._plain, val, world) if val else None

    @cached_property
    def _plain(self) -> RetinaNet:
        """Where weights are evaluated and recalibrated."""
        return plain_detector(self._info, self._recipe.compute, self._world)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        parts = {"average": self.average, "validation": self.validation}
        return {name: part for name, part in parts.items() if part}

    def step(self, model: RetinaNet) -> None:
        """Average the weights after a step with those before."""
        if self.average:
            self.average.update_parameters(model)

    def validate(self, model: RetinaNet, epoch: float) -> float:
        """Return the AP on ``val`` after an epoch in percent; all processes call it together."""
        assert self.validation
        return self.validation.validate(epoch, self._weights(model))

    def _weights(self, model: RetinaNet) -> Weights:
        return (self.average.module if self.average else model).state_dict()

    def finish(self, model: RetinaNet, epoch: float) -> tuple[RetinaNet, dict[str, Any]]:
        """Return the detector to write after the last epoch, and what its file says of the choice.

        All processes call it together.
        """
        settings, validation = self._recipe.finetune, self.validation
        if not (self.average or validation or settings.recalibrate):
            return model, {}
        told: dict[str, Any] = {"epoch": epoch, "epochs": settings.epochs, "keep": settings.keep}
        weights = self._weights(model)
        if validation:
            told["val_ap"] = validation.ap
            if settings.keep == "best":
                weights = validation.best_weights
                told |= {"epoch": validation.best_epoch, "val_ap": validation.best_ap}
        self._plain.load_state_dict(weights)
        if settings.recalibrate:
            self._recalibrate()
            if validation:
                told["val_ap_before_recalibration"] = told["val_ap"]
                told["val_ap"] = validation.measured(self._plain.state_dict())
        return self._plain, told | {"ema": settings.ema, "recalibrated": settings.recalibrate}

    def _recalibrate(self) -> None:
        settings, images = self._recipe.finetune, self._images
        if not self._world.is_main:  # which writes
            return
        order = epoch_batches(
            len(images), settings.batch_size, seed=self._recipe.seed, epoch=0, flip=False
        )
        number = -(-settings.recalibrate // settings.batch_size)
        positions = [draw.position for batch in order[:number] for draw in batch]
        batches = batches_of(images, positions, settings.batch_size, self._recipe.data.workers)
        with exact_fp32():
            recalibrate(self._plain, batches, self._world.device)
