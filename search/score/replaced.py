"""How much worse is a trained detector with another backbone, before any training?"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture
from adapt.data.coco import CocoSplit, check_apart
from adapt.data.dataset import Batch, DetectionDataset
from adapt.detector.detect import batches_of
from adapt.detector.file import load_detector
from adapt.detector.retinanet import build_detector
from adapt.detector.statistics import recalibrate_network
from adapt.errors import AdaptError
from adapt.mapping.activations import batched, unlabelled
from adapt.mapping.pretrained import Mapper, map_backbone, operations_of, silence
from adapt.mapping.principal import principal_detector
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.runtime import exact_fp32
from search.derive.held_out import held_out_loss
from search.recipe.optimisation import SearchRecipe
from search.recipe.recipe import Recipe
from search.train.world import World

BATCH = 8
DISTANCE = 1.0  # weight of the pyramid's distance; on BCCD sums ranked better with 1 than below
CALIBRATION = 24  # unlabelled training images at most, for axes and statistics


def calibration(search: SearchRecipe) -> int:
    """Return how many training images axes and statistics come from."""
    return min(CALIBRATION, search.score_images)


class Replacement:
    """Puts other backbones into a trained detector, and measures the loss on held-out images.

    On the GPU, if there is one; parameters are mapped on the CPU.

    Every backbone gets the first principal axes of the trained one, and BatchNorms with the
    statistics of unlabelled training images.

    Args:
        recipe: Input, seed and loading.
        start: File of the trained detector.
        train: Training images; their boxes are not used.
        held_out: Images with boxes that the detector was not trained on.

    Attributes:
        info: Description of the trained detector.

    Raises:
        AdaptError: If the file cannot be read, or the images do not fit it.
    """

    def __init__(self, recipe: Recipe, start: Path, train: CocoSplit, held_out: CocoSplit) -> None:
        trained, self.info = load_detector(start)
        train, held_out = (
            split.matched(self.info.classes, str(start)) for split in (train, held_out)
        )
        check_apart(train, held_out)
        self._recipe = recipe
        self._unlabelled = list(unlabelled(train, recipe.input, calibration(recipe.search)))
        self._trained = principal_detector(trained, self._unlabelled)
        self._device = World.alone().device
        self._calibration = [images.to(self._device) for images in batched(self._unlabelled)]
        images = DetectionDataset(held_out, recipe.input)
        number = min(recipe.search.score_images, len(images))
        positions = [index * len(images) // number for index in range(number)]
        self._batches: list[Batch] = list(batches_of(images, positions, BATCH, 0))
        with exact_fp32():
            recalibrate_network(self._body(self._trained.to(self._device)), self._calibration)
            loss, self._pyramids = self._examined(self._trained)
        self._trained.cpu()  # where parameters are mapped
        if not math.isfinite(loss):
            raise AdaptError(
                f"{start} cannot be scored: its loss on {held_out.annotations} is {loss}; its "
                "training diverged, train it again with a lower learning rate"
            )
        # A level that is the same everywhere, as one cell of one image, cannot be compared.
        spreads = [torch.cat(one).var((0, 2, 3), correction=0).mean() for one in self._pyramids]
        self._spreads = [float(spread) for spread in spreads]

    @property
    def source(self) -> Architecture:
        """The backbone of the trained detector."""
        return self.info.architecture

    def loss(self, architecture: Architecture) -> float:
        """Return how bad the detector is with a backbone, on the held-out images.

        It is the detection loss, and :data:`DISTANCE` times the share of the variance of P3 to P7
        that differs from the trained detector's, averaged over levels that vary. The loss alone may
        fall by chance or because a short training is confident in the wrong places.
        """
        with exact_fp32():
            loss, pyramids = self._examined(self._with(architecture))
        lost = [
            torch.stack([(a - b).square().mean() for a, b in zip(level, wanted, strict=True)])
            for level, wanted in zip(pyramids, self._pyramids, strict=True)
        ]
        by_level = zip(lost, self._spreads, strict=True)
        shares = [float(of.mean()) / spread for of, spread in by_level if spread]
        return loss + DISTANCE * sum(shares) / max(1, len(shares))

    def _examined(self, model: RetinaNet) -> tuple[float, list[list[Tensor]]]:
        """Return the detection loss, and P3 to P7 of every batch, by level."""
        seen: list[list[Tensor]] = []

        def note(_: nn.Module, __: object, pyramid: dict[str, Tensor]) -> None:
            seen.append([level.detach() for level in pyramid.values()])

        with model.backbone.register_forward_hook(note):
            loss = held_out_loss(model, self._batches, self._device)
        return loss, [list(level) for level in zip(*seen, strict=True)]

    def _with(self, architecture: Architecture) -> RetinaNet:
        body = Backbone(architecture)
        model = build_detector(body, self.info.detector)
        noiseless = torch.Generator()
        source = self._body(self._trained)
        report = map_backbone(source, body, noise=0.0, generator=noiseless)
        for of_source, of_body in zip(operations_of(source), operations_of(body), strict=True):
            for _, added in of_body[len(of_source) :]:
                silence(added)  # a copy of the source's last operation would add to the loss
        map_pyramid_and_heads(self._trained, model, Mapper(0.0, noiseless, report))
        model.to(self._device)
        if architecture != self.source:
            recalibrate_network(body, self._calibration)
        return model

    @staticmethod
    def _body(model: RetinaNet) -> Backbone:
        body = model.backbone.body
        assert isinstance(body, Backbone)
        return body
