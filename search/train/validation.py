"""Which epoch of a fine-tuning is the best on held-out images? (AP, best weights, patience)"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchvision.models.detection import RetinaNet

from adapt.data.coco import CocoSplit, check_apart, check_has_boxes
from adapt.data.dataset import DetectionDataset
from adapt.data.evaluate import evaluate
from adapt.detector.detect import batches_of, detect
from adapt.progress import Progress
from adapt.runtime import exact_fp32
from search.recipe.recipe import Recipe
from search.train.world import World

Weights = Mapping[str, Tensor]


def validation_split(recipe: Recipe, train: CocoSplit) -> CocoSplit | None:
    """Return the images that a fine-tuning is validated on; None if it is not.

    Raises:
        AdaptError: If there is no such split, or it has no boxes, boxes of other classes, or images
            that are trained on.
    """
    if not recipe.finetune.val_epochs:
        return None
    split = recipe.split(recipe.data.val).matched(train.class_names, str(train.annotations))
    check_has_boxes(split)
    check_apart(train, split)
    return split


class Validation:
    """Evaluates a detector on held-out images while it is trained, and remembers the best weights.

    Args:
        recipe: How it is trained.
        model: A detector of the same form, in fp32; the weights to evaluate are loaded into it.
        split: The images, with the labels of the training images.
        world: The processes; each detects in its share of the images.

    Attributes:
        model: See above.
        ap: The last AP in percent; None before the first.
        best_ap: The best one so far.
        best_epoch: The epoch it is of.
        best_weights: The weights it is of, if the recipe keeps them.
        waited: Validations since then. They count once there is an AP above 0.
    """

    def __init__(self, recipe: Recipe, model: RetinaNet, split: CocoSplit, world: World) -> None:
        self.model, self._split, self._world, self._recipe = model, split, world, recipe
        self._images = DetectionDataset(split, recipe.input, cache_mb=recipe.data.cache_mb)
        self.ap: float | None = None
        self.best_ap, self.best_epoch, self.waited = 0.0, 0.0, 0
        self.best_weights: dict[str, Tensor] = {}

    def measured(self, weights: Weights) -> float:
        """Return the AP of weights in percent; all processes call it together."""
        self.model.load_state_dict(weights)
        self._world.same_start(self.model)  # BatchNorms may have statistics of their own
        share = range(self._world.rank, len(self._images), self._world.size)
        size, workers = self._recipe.finetune.batch_size, self._recipe.data.workers
        batches = batches_of(self._images, share, size, workers)
        with exact_fp32():
            found = detect(self.model.eval(), batches, self._split, self._world.device)
        detections = self._world.gather(found)
        return 100 * evaluate(self._split, detections, self._recipe.detector.detections).ap

    def validate(self, epoch: float, weights: Weights) -> float:
        """Return the AP of the weights after an epoch in percent, and keep them if they are best.

        Of equal ones the later are; all processes call it together.
        """
        self.ap = self.measured(weights)
        self.waited = 0 if self.ap > self.best_ap or not self.best_ap else self.waited + 1
        if self.ap >= self.best_ap:
            self.best_ap, self.best_epoch = self.ap, epoch
            if self._recipe.finetune.keep == "best":
                self.best_weights = {name: w.detach().cpu().clone() for name, w in weights.items()}
        return self.ap

    @property
    def is_over(self) -> bool:
        """Whether there was no improvement for so long that the training stops."""
        patience = self._recipe.finetune.patience
        return bool(patience) and self.waited >= patience

    def why_over(self, epoch: float) -> str:
        """Say in one sentence after which epoch the training stops, and why."""
        epochs = self._recipe.finetune.epochs
        return (
            f"the fine-tuning stops after epoch {epoch:g} of {epochs}: AP on "
            f"{self._recipe.data.val} was not above the {self.best_ap:.1f} of epoch "
            f"{self.best_epoch:g} in {self.waited} evaluations"
        )

    def noted(self, progress: Progress) -> Progress:
        """Return a progress that shows the last AP too."""

        def with_ap(done: int, total: int, note: str = "", /) -> None:
            progress(done, total, note if self.ap is None else f"{note}, val AP {self.ap:.1f}")

        return with_ap

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {
            "ap": self.ap,
            "best": (self.best_ap, self.best_epoch, self.waited),
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        self.ap, self.best_weights = state["ap"], state["best_weights"]
        self.best_ap, self.best_epoch, self.waited = state["best"]
