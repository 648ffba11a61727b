"""Which pretrained backbone is mapped onto what a recipe trains?"""

from pathlib import Path

from adapt.data.coco import CocoSplit
from adapt.mapping.activations import unlabelled
from adapt.mapping.principal import principal_source
from adapt.network.backbone import Backbone
from adapt.network.weights import source_backbone
from search.recipe.recipe import Recipe


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
    if recipe.finetune.mapping != "principal":
        return source
    return principal_source(source, unlabelled(train, recipe.input))
