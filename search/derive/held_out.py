"""How good is a network of a search on held-out images, with the weights of its supernet?"""

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
from search.derive.finished import FinishedSearch
from search.train.step import detection_loss
from search.train.world import World

RECALIBRATION = 16  # batches of training images
LEAST_AP = 0.005  # below it, AP says nothing yet, and the loss decides


@dataclass(frozen=True)
class HeldOut:
    """How a network does on held-out images.

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
    """Tries networks of a search on held-out images, each with recalibrated BatchNorms.

    Args:
        search: A finished search.
        train: Images for the statistics of the BatchNorms.
        held_out: Images for loss and AP.
        batches: Batches of training images per network.

    Raises:
        AdaptError: If the images have other classes than the search, or some are in both splits.
    """

    def __init__(
        self,
        search: FinishedSearch,
        train: CocoSplit,
        held_out: CocoSplit,
        batches: int = RECALIBRATION,
    ) -> None:
        _check_data(search, train, held_out)
        recipe = search.recipe
        self._held_out, self._batches, self._recipe = held_out, batches, recipe
        self._config = recipe.detector_config(len(search.class_names))
        self._device = World.alone().device
        self._supernet = build_retinanet(search.supernet, self._config)
        self._supernet.load_state_dict(search.states)
        self._images = [
            DetectionDataset(split, recipe.input, cache_mb=recipe.data.cache_mb)
            for split in (train, held_out)
        ]

    def loss(self, choices: Choices) -> float:
        """Return the detection loss of a network on the held-out images."""
        return held_out_loss(self._detector(choices), self._batches_of(1), self._device)

    def examine(self, choices: Choices) -> HeldOut:
        """Return loss and AP of a network on the held-out images."""
        model = self._detector(choices)
        loss = held_out_loss(model, self._batches_of(1), self._device)
        found = detect(model, self._batches_of(1), self._held_out, self._device)
        return HeldOut(loss, evaluate(self._held_out, found))

    def _detector(self, choices: Choices) -> RetinaNet:
        model = inherit_detector(self._supernet, choices, self._config)
        model.to(device=self._device, memory_format=torch.channels_last)
        recalibrate(model, self._batches_of(0), self._device)
        return model

    def _batches_of(self, which: int) -> Iterable[Batch]:
        """Return batches of training images (0, the same for all networks), or all held-out (1)."""
        images, size = self._images[which], self._recipe.search.weights.batch_size
        order: list[list[Index]]
        if which == 0:
            seed = self._recipe.seed
            order = epoch_batches(len(images), size, seed=seed, epoch=0, flip=False)
            order = order[: self._batches]
        else:
            positions = [(position, False) for position in range(len(images))]
            order = [positions[i : i + size] for i in range(0, len(images), size)]
        return DataLoader(
            images,
            batch_sampler=order,
            num_workers=self._recipe.data.workers,
            collate_fn=collate,
            generator=torch.Generator(),  # of its own: the run's random numbers stay
        )


def _check_data(search: FinishedSearch, train: CocoSplit, held_out: CocoSplit) -> None:
    for split in (train, held_out):
        if split.class_names != search.class_names:
            raise AdaptError(
                f"the search is for the classes {', '.join(search.class_names)}, "
                f"{split.annotations} has {', '.join(split.class_names)}; pass the data set of the "
                "search with --data"
            )
    trained = {image.path.resolve() for image in train.images}
    both = sum(image.path.resolve() in trained for image in held_out.images)
    if both:
        raise AdaptError(
            f"{both} images of {held_out.annotations} are training images too, of "
            f"{train.annotations}; set data.val to a split that was not trained on"
        )


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def recalibrate(model: RetinaNet, batches: Iterable[Batch], device: torch.device) -> None:
    """Set the running statistics of all BatchNorms to their mean over batches.

    Weights that were trained among many networks meet other means and variances in each. The heads
    have no BatchNorm and do not run.

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
    for images, _ in batches:
        prepared, _ = model.transform([image.to(device) for image in images])
        model.backbone(prepared.tensors.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def held_out_loss(model: RetinaNet, batches: Iterable[Batch], device: torch.device) -> float:
    """Return the detection loss with running statistics, averaged over images.

    The batches do not matter: torchvision's RetinaNet averages over the images of each.
    """
    model.train()  # evaluation mode returns detections
    for norm in batch_norms(model):
        norm.eval()
    total, number = 0.0, 0
    for batch in batches:
        total += len(batch[0]) * float(detection_loss(model, batch, device))
        number += len(batch[0])
    model.eval()
    return total / number


@torch.no_grad()
def detect(
    model: RetinaNet, batches: Iterable[Batch], split: CocoSplit, device: torch.device
) -> list[Detections]:
    """Return what a detector finds, in pixels of the original images.

    Args:
        model: The detector, in evaluation mode.
        batches: The images of the split, fitted into the detector's input.
        split: The split.
        device: Where the model is.
    """
    sizes = {image.id: (image.width, image.height) for image in split.images}
    found = []
    for images, targets in batches:
        outputs: list[dict[str, Tensor]] = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            number = int(target["image_id"])
            boxes = detections_to_original(output["boxes"].cpu(), target["factors"], *sizes[number])
            found.append(Detections(number, boxes, output["scores"], output["labels"]))
    return found
