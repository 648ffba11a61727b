"""How good is a network of a search on held-out images, with the weights of the supernet?"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet

from adapt.architecture import Choices
from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch, DetectionDataset, Index, collate, epoch_batches
from adapt.data.evaluate import Detections, Metrics, detections_to_original, evaluate
from adapt.detector.retinanet import build_retinanet
from adapt.errors import AdaptError
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
        _check_apart(train, held_out)
        recipe = search.recipe
        self._held_out, self._batches, self._recipe = held_out, batches, recipe
        self._config = recipe.detector_config(len(search.class_names))
        self._device = World.alone().device
        self._supernet = build_retinanet(search.supernet, self._config)
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
        recalibrate(model, self._training_batches(), self._device)
        return model

    @property
    def _batch_size(self) -> int:
        return self._recipe.search.weights.batch_size

    def _training_batches(self) -> Iterable[Batch]:
        """Return batches of training images, the same for all networks."""
        images, seed = self._train_images, self._recipe.seed
        order = epoch_batches(len(images), self._batch_size, seed=seed, epoch=0, flip=False)
        return self._loader(images, order[: self._batches])

    def _held_out_batches(self) -> Iterable[Batch]:
        """Return all held-out images, in order."""
        images, size = self._held_out_images, self._batch_size
        indices = [(position, False) for position in range(len(images))]
        return self._loader(images, [indices[i : i + size] for i in range(0, len(images), size)])

    def _loader(self, images: DetectionDataset, order: list[list[Index]]) -> Iterable[Batch]:
        return DataLoader(
            images,
            batch_sampler=order,
            num_workers=self._recipe.data.workers,
            collate_fn=collate,
            generator=torch.Generator(),  # or the loader draws from the run's random numbers
        )


def _check_apart(train: CocoSplit, held_out: CocoSplit) -> None:
    trained = {image.path.resolve() for image in train.images}
    shared = sum(image.path.resolve() in trained for image in held_out.images)
    if shared:
        raise AdaptError(
            f"{shared} images of {held_out.annotations} are training images too, of "
            f"{train.annotations}; set data.val to a split that was not trained on"
        )


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def recalibrate(model: RetinaNet, batches: Iterable[Batch], device: torch.device) -> None:
    """Set the running statistics of all BatchNorms to their means over batches.

    Every network that shares the supernet's weights has other means and variances, so each needs
    statistics of its own.

    Args:
        model: A detector; in evaluation mode afterwards.
        batches: Images.
        device: Where the model is.
    """
    model.eval()
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean, in which all batches count the same
        norm.train()
    layout = ComputeRecipe().memory_format(device.type)
    for images, _ in batches:
        # The heads have no BatchNorm: the backbone and its pyramid are enough.
        prepared, _ = model.transform([image.to(device) for image in images])
        model.backbone(prepared.tensors.contiguous(memory_format=layout))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def held_out_loss(model: RetinaNet, batches: Iterable[Batch], device: torch.device) -> float:
    """Return the detection loss, averaged over images; BatchNorms use running statistics."""
    model.train()  # evaluation mode returns detections
    for norm in batch_norms(model):
        norm.eval()
    total, number = 0.0, 0
    for batch in batches:
        # torchvision's RetinaNet averages over the images of a batch; batches may differ in size.
        total += len(batch[0]) * float(detection_loss(model, batch, device))
        number += len(batch[0])
    model.eval()
    return total / number


@torch.no_grad()
def detect(
    model: RetinaNet, batches: Iterable[Batch], split: CocoSplit, device: torch.device
) -> list[Detections]:
    """Return a detector's detections, in pixels of the original images.

    Args:
        model: The detector, in evaluation mode.
        batches: The images of the split, fitted into the detector's input.
        split: The split.
        device: Where the model is.
    """
    sizes = {image.id: (image.width, image.height) for image in split.images}
    detections = []
    for images, targets in batches:
        outputs: list[dict[str, Tensor]] = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            number = int(target["image_id"])
            boxes, scores, labels = (output[name].cpu() for name in ("boxes", "scores", "labels"))
            boxes, inside = detections_to_original(boxes, target["factors"], *sizes[number])
            detections.append(Detections(number, boxes[inside], scores[inside], labels[inside]))
    return detections
