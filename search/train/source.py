"""Which pretrained backbone starts a search or a fine-tuning, and how does a detector get it?"""

from pathlib import Path

import torch

from adapt.data.coco import CocoSplit
from adapt.detector.statistics import recalibrate_network
from adapt.mapping.activations import batched, unlabelled
from adapt.mapping.lost import lost_variance
from adapt.mapping.pretrained import MappingReport, map_backbone
from adapt.mapping.principal import principal_source
from adapt.mapping.refit import refit
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


def map_source(recipe: Recipe, target: Backbone, train: CocoSplit) -> MappingReport:
    """Map the source onto a backbone, in place.

    Args:
        recipe: Says which weights, and how they are mapped.
        target: The backbone.
        train: The whole training split.

    Raises:
        AdaptError: If weights are missing or do not fit, or an image cannot be read.
    """
    settings, size = recipe.finetune, recipe.input
    source = mapped_source(recipe, target.architecture.source, train)
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
    others = list(unlabelled(train, size, REPORTED, between=True))
    report.lost_variance = lost_variance(source, target, others)
    return report
