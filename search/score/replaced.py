"""How much worse is a trained detector with another backbone, before any training?"""

from pathlib import Path

import torch
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture
from adapt.data.coco import CocoSplit, check_apart
from adapt.data.dataset import Batch, DetectionDataset
from adapt.detector.detect import batches_of
from adapt.detector.file import load_detector
from adapt.detector.retinanet import build_retinanet
from adapt.detector.statistics import recalibrate_network
from adapt.mapping.activations import batched, unlabelled
from adapt.mapping.pretrained import Mapper, map_backbone
from adapt.mapping.principal import principal_detector
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.runtime import exact_fp32
from search.derive.held_out import held_out_loss
from search.recipe.recipe import Recipe

BATCH = 8
CALIBRATION = 24  # unlabelled training images, for axes and statistics
IMAGES = 64  # held-out images at most, evenly spaced; the same for all networks


class Replacement:
    """Puts other backbones into a trained detector, and measures the loss on held-out images.

    Every backbone gets the first principal axes of the trained one, its projections fitted to it by
    least squares, and BatchNorms with the statistics of unlabelled training images.

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
        self._unlabelled = list(unlabelled(train, recipe.input, CALIBRATION))
        self._trained = principal_detector(trained, self._unlabelled)
        self._calibration = batched(self._unlabelled)
        recalibrate_network(self._body(self._trained), self._calibration)
        images = DetectionDataset(held_out, recipe.input)
        number = min(IMAGES, len(images))
        positions = [index * len(images) // number for index in range(number)]
        self._batches: list[Batch] = list(batches_of(images, positions, BATCH, 0))

    @property
    def source(self) -> Architecture:
        """The backbone of the trained detector."""
        return self.info.architecture

    def loss(self, architecture: Architecture) -> float:
        """Return the detection loss on the held-out images, averaged over them."""
        with exact_fp32():
            model = self._with(architecture)
            return held_out_loss(model, self._batches, torch.device("cpu"))

    def _with(self, architecture: Architecture) -> RetinaNet:
        body = Backbone(architecture)
        model = build_retinanet(body, self.info.detector)
        noiseless = torch.Generator()
        source = self._body(self._trained)
        report = map_backbone(source, body, noise=0.0, generator=noiseless)
        if architecture != self.source:
            recalibrate_network(body, self._calibration)
        map_pyramid_and_heads(self._trained, model, Mapper(0.0, noiseless, report))
        return model

    @staticmethod
    def _body(model: RetinaNet) -> Backbone:
        body = model.backbone.body
        assert isinstance(body, Backbone)
        return body
