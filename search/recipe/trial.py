"""What is left of a recipe for a trial, which tells in minutes whether its run will end?"""

from dataclasses import replace

from search.recipe.joint import CANDIDATES, JointRecipe
from search.recipe.optimisation import LEAST_NETWORKS
from search.recipe.recipe import Recipe

TRIAL_STEPS = 20  # of every training
TRIAL_GRID = 8  # of the cost table
TRIAL_IMAGES = 4  # that scores are measured on
TRIAL_DETECTORS = 8  # that the table is certified by


def trial_of(recipe: Recipe) -> Recipe:
    """Return the recipe of a trial: same data, device and kinds of detectors, but fewer of them.

    Two settings race, the smallest and the largest input if inputs are searched, files are measured
    in two rounds, and lose as much AP as they like, of which there is little. How many steps a
    training has is not the recipe's to say.

    Args:
        recipe: The recipe that is tried.
    """
    rounds = min(2, recipe.device.rounds)
    device = replace(recipe.device, rounds=rounds, max_ap_drop=100.0)
    tried = recipe.with_search(score_images=TRIAL_IMAGES, score_networks=LEAST_NETWORKS)
    name = f"{recipe.name}-trial"
    return replace(tried, name=name, device=device, joint=_two_settings(recipe.joint))


def _two_settings(joint: JointRecipe) -> JointRecipe:
    """Return what to choose from with one candidate of each field, and two of one of them."""
    several = [name for name in ("input", *CANDIDATES) if len(getattr(joint, name)) > 1]
    least = {name: getattr(joint, name)[:1] for name in several}
    if several:
        candidates = getattr(joint, several[0])
        if several[0] == "input":
            candidates = sorted(candidates, key=lambda size: size[0] * size[1])
        least[several[0]] = (candidates[0], candidates[-1])
    return replace(joint, epochs=1, **least)
