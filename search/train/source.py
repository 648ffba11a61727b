"""Which parameters start a search or a fine-tuning, and how does a detector get them?"""

from pathlib import Path

import torch
from torchvision.models.detection import RetinaNet

from adapt.data.coco import CocoSplit
from adapt.detector.file import DetectorInfo, load_detector
from adapt.detector.statistics import recalibrate_network
from adapt.mapping.activations import batched, unlabelled
from adapt.mapping.lost import lost_variance
from adapt.mapping.pretrained import Mapper, MappingReport, map_backbone
from adapt.mapping.principal import principal_detector, principal_source
from adapt.mapping.refit import refit
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.network.weights import source_backbone
from search.recipe.recipe import Recipe

REPORTED = 32  # images that the lost variance is measured on


def mapped_source(recipe: Recipe, name: str, train: CocoSplit) -> Backbone:
    """Return the source with its parameters, in its principal axes if the recipe maps so.

    Args:
        recipe: Says which weights, and how they are mapped.
        name: Name of the source.
        train: The whole training split, so that a search and its fine-tunings get the same axes.

    Raises:
        AdaptError: If weights are missing or an image cannot be read.
    """
    source = source_backbone(name, Path(recipe.weights) if recipe.weights else None)
    if not recipe.finetune.principal:
        return source
    return principal_source(source, unlabelled(train, recipe.input))


def map_source(
    recipe: Recipe, target: Backbone, train: CocoSplit, *, measure_lost: bool = True
) -> MappingReport:
    """Map the source onto a backbone, in place.

    Args:
        recipe: Says which weights, and how they are mapped.
        target: The backbone.
        train: The whole training split.
        measure_lost: Whether the report is to say what was lost.

    Raises:
        AdaptError: If weights are missing or do not fit, or an image cannot be read.
    """
    source = mapped_source(recipe, target.architecture.source, train)
    return _mapped(recipe, source, target, train, measure_lost)


def map_trained(
    recipe: Recipe,
    start: Path,
    target: RetinaNet,
    info: DetectorInfo,
    train: CocoSplit,
    *,
    measure_lost: bool = True,
) -> MappingReport:
    """Map a trained detector onto one around another backbone, in place.

    Classes are matched by name; those that it does not know start as in a new detector.

    Args:
        recipe: Says how parameters are mapped.
        start: File of the trained detector.
        target: The detector.
        info: Its description.
        train: The whole training split.
        measure_lost: Whether the report is to say what was lost.

    Raises:
        AdaptError: If the file cannot be read, or an image cannot be read.
    """
    trained, of = load_detector(start)
    places = {name: place for place, name in enumerate(of.classes)}
    known = [(place, places[name]) for place, name in enumerate(info.classes) if name in places]
    if recipe.finetune.principal:
        trained = principal_detector(trained, unlabelled(train, recipe.input))
    source, body = trained.backbone.body, target.backbone.body
    assert isinstance(source, Backbone)
    assert isinstance(body, Backbone)
    report = _mapped(recipe, source, body, train, measure_lost)
    noise = torch.Generator().manual_seed(recipe.seed)
    mapper = Mapper(recipe.finetune.mapping_noise, noise, report)
    map_pyramid_and_heads(trained, target, mapper, known)
    report.new_classes = tuple(name for name in info.classes if name not in places)
    return report


def _mapped(
    recipe: Recipe, source: Backbone, target: Backbone, train: CocoSplit, measure_lost: bool
) -> MappingReport:
    """Map a backbone that is in its principal axes already, if the recipe maps so."""
    settings, size = recipe.finetune, recipe.input
    images = list(unlabelled(train, size)) if settings.principal else []
    if settings.principal:
        recalibrate_network(source, batched(images))
    report = map_backbone(
        source,
        target,
        mode=settings.mapping,
        noise=settings.mapping_noise,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    if settings.mapping == "refit":
        refit(source, target, images)
    elif settings.principal:
        recalibrate_network(target, batched(images))
    if measure_lost:
        others = list(unlabelled(train, size, REPORTED, between=True))
        report.lost_variance = lost_variance(source, target, others)
    return report
