"""Which one network does a finished search stand for?"""

from pathlib import Path
from typing import Any

from adapt.cost_table import CostTable
from adapt.errors import AdaptError
from adapt.space import SearchSpace
from adapt.supernet import Supernet
from search.checkpoint import read_checkpoint
from search.costs import check_certificate, costs_of
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
    # The space as it was searched: its file may have been edited, or lie on another machine.
    supernet = Supernet(SearchSpace.restore(content["space"]), mask=recipe.search.mask)
    prefix = "backbone.body."
    states = content["states"]["detector"]
    supernet.load_state_dict(
        {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
    )
    return supernet, recipe, content


def derive(
    searched: Path, out: Path, costs: Path | None = None, *, uncertified: bool = False
) -> dict[str, Any]:
    """Write the arg max network of a finished search (paper section III-B) to ``out``.

    Args:
        searched: ``supernet.pt``.
        out: Architecture file to write.
        costs: Cost table that predicts the latency of the network.
        uncertified: Whether a table without a certificate will do.

    Returns:
        The network, what it costs, and what the search expected.

    Raises:
        AdaptError: If the search is unfinished, or the table does not fit or has no certificate.
    """
    supernet, recipe, content = load_searched(searched)
    architecture = supernet.argmax()
    classes = content["num_classes"]
    if costs:
        with CostTable.open(costs) as table:
            if not uncertified:
                check_certificate(table)
            found = costs_of(architecture, recipe, classes, table)
    else:
        found = costs_of(architecture, recipe, classes)
    architecture.save(out, rule="argmax", search=content["identity"], costs=found)
    return {"architecture": str(out), "network": str(architecture), **found}
