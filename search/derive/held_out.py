"""How good is a network of a search on held-out images, with the weights of the supernet?"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchvision.models.detection import RetinaNet

from adapt.architecture import Choices
from adapt.data.coco import CocoSplit, check_apart
from adapt.data.dataset import Batch, DetectionDataset, epoch_batches
from adapt.data.evaluate import Metrics, evaluate
from adapt.detector.detect import batches_of, detect
from adapt.detector.retinanet import build_detector
from adapt.detector.statistics import batch_norms, recalibrate
from adapt.mapping.inherit import inherit_detector
from adapt.runtime import exact_fp32
from search.derive.finished import FinishedSearch
from search.recipe.optimisation import ComputeRecipe
from search.train.step import detection_loss
from search.train.world import World

RECALIBRATION = 16  # batches of training images, for the statistics of BatchNorms
LEAST_AP = 0.005  # an AP below it says nothing yet, and the loss ranks networks


@dataclass(frozen=True)
class HeldOut:
    """Loss and metrics of a network on held-out images.

    Attributes:
        loss: Detection loss (L_model of Eq. 4), averaged over the images.
        metrics: COCO metrics.
    """

    loss: float
    metrics: Metrics

    @property
    def rank(self) -> tuple[float, float]:
        """AP, and where that ties or says nothing yet, the loss; higher is better."""
        ap = self.metrics.ap
        return ap if ap >= LEAST_AP else 0.0, -self.loss


class Examiner:
    """Evaluates networks of a search on held-out images, each with recalibrated BatchNorms.

    Args:
        search: A finished search.
        train: Images for the statistics of the BatchNorms.
        held_out: Images for loss and AP.
        batches: Batches of training images per network.

    Raises:
        AdaptError: If boxes are of classes that the search does not know, or images in both splits.
    """

    def __init__(
        self,
        search: FinishedSearch,
        train: CocoSplit,
        held_out: CocoSplit,
        batches: int = RECALIBRATION,
    ) -> None:
        train, held_out = (
            split.matched(search.class_names, "the search") for split in (train, held_out)
        )
        check_apart(train, held_out)
        recipe = search.recipe
        self._held_out, self._batches, self._recipe = held_out, batches, recipe
        self._config = recipe.detector_config(len(search.class_names))
        self._device = World.alone().device
        self._supernet = build_detector(search.supernet, self._config)
        self._supernet.load_state_dict(search.states)
        cache_mb = recipe.data.cache_mb
        self._train_images, self._held_out_images = (
            DetectionDataset(split, recipe.input, cache_mb=cache_mb) for split in (train, held_out)
        )

    def loss(self, choices: Choices) -> float:
        """Return the detection loss of a network on the held-out images."""
        return held_out_loss(self._detector(choices), self._held_out_batches(), self._device)

    def examine(self, choices: Choices) -> HeldOut:
        """Return loss and AP of a network on the held-out images."""
        with exact_fp32():
            model = self._detector(choices)
            loss = held_out_loss(model, self._held_out_batches(), self._device)
            detections = detect(model, self._held_out_batches(), self._held_out, self._device)
        return HeldOut(loss, evaluate(self._held_out, detections, self._config.detections))

    def _detector(self, choices: Choices) -> RetinaNet:
        model = inherit_detector(self._supernet, choices, self._config)
        layout = ComputeRecipe().memory_format(self._device.type)  # in fp32
        model.to(device=self._device, memory_format=layout)
        recalibrate(model, self._training_batches(), self._device, layout)
        return model

    @property
    def _batch_size(self) -> int:
        return self._recipe.search.weights.batch_size

    def _training_batches(self) -> Iterable[Batch]:
        """Return batches of training images, the same for all networks."""
        size, seed = self._batch_size, self._recipe.seed
        order = epoch_batches(len(self._train_images), size, seed=seed, epoch=0, flip=False)
        positions = [draw.position for batch in order[: self._batches] for draw in batch]
        return batches_of(self._train_images, positions, size, self._recipe.data.workers)

    def _held_out_batches(self) -> Iterable[Batch]:
        """Return all held-out images, in order."""
        images, workers = self._held_out_images, self._recipe.data.workers
        return batches_of(images, range(len(images)), self._batch_size, workers)


@torch.no_grad()
def held_out_loss(model: RetinaNet, batches: Iterable[Batch], device: torch.device) -> float:
    """Return the detection loss, averaged over images; BatchNorms use running statistics."""
    model.train()  # evaluation mode returns detections
    for norm in batch_norms(model):
        norm.eval()
    total, number = 0.0, 0
    # The loss of Faster R-CNN is of boxes drawn at random: the same draws for all networks.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for batch in batches:
            # torchvision's RetinaNet averages over the images of a batch, other heads over its
            # matched anchors; batches may differ in size, and are the same for all networks.
            total += len(batch[0]) * float(detection_loss(model, batch, device))
            number += len(batch[0])
    model.eval()
    return total / number
