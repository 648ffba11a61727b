"""Which one network does a finished search stand for?"""

from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.errors import AdaptError
from adapt.supernet import Supernet
from search.checkpoint import read_checkpoint
from search.recipe import Recipe


def load_searched(path: Path) -> tuple[Supernet, Recipe, dict[str, Any]]:
    """Read a finished search: the supernet with its alphas and betas, the recipe, the header.

    Raises:
        AdaptError: If the file is missing, damaged or the search is unfinished.
    """
    content = read_checkpoint(path, "supernet")
    if content["step"] < content["total_steps"]:
        raise AdaptError(
            f"the search in {path} stopped after {content['step']} of {content['total_steps']} "
            "steps; run the same `adapt search` again to finish it"
        )
    recipe = Recipe.from_dict(content["recipe"])
    supernet = Supernet(recipe.space.load(), mask=recipe.search.mask)
    prefix = "backbone.body."
    states = content["states"]["detector"]
    supernet.load_state_dict(
        {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
    )
    return supernet, recipe, content


def derive_argmax(path: Path) -> tuple[Architecture, Recipe, dict[str, Any]]:
    """Return the arg max network of a finished search (paper section III-B)."""
    supernet, recipe, content = load_searched(path)
    return supernet.argmax(), recipe, content
