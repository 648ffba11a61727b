"""Which steps does `adapt score` take, and what does it write?"""

from itertools import count
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.artifacts import content_hash, file_hash, make_folder
from adapt.cost.units import madds
from adapt.progress import Progress, silent
from search.recipe.recipe import Recipe
from search.score.certificate import certify_scores
from search.score.replaced import Replacement
from search.score.scoring import networks_to_measure, score


def run_score(
    recipe: Recipe,
    start: Path,
    out: Path,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score the choices of a recipe's space by a trained detector, certify and write them.

    Args:
        recipe: Space, images and input.
        start: File of the trained detector.
        out: File to write.
        progress: Told after every measured network.

    Returns:
        The file, the teacher's loss, and the certificate's Kendall tau.

    Raises:
        AdaptError: If the detector or the images do not fit. The file is written even if sums rank
            badly; reading it is refused then.
    """
    make_folder(out.parent)
    train, val = recipe.split(recipe.data.train), recipe.split(recipe.data.val)
    space, replacement = recipe.space.load(), Replacement(recipe, start, train, val)
    networks = recipe.search.score_networks
    total = len(networks_to_measure(replacement.source, space)) + networks
    done = count(1)

    def loss(architecture: Architecture) -> float:
        measured = replacement.loss(architecture)
        progress(next(done), total, f"loss {measured:.3g}")
        return measured

    scores = score(loss, replacement.source, space)
    model = recipe.detectors(len(train.class_names)).costs(madds)
    certificate = certify_scores(scores, loss, space, model, number=networks)
    images = [split.sha256 for split in (train, val)]
    identity = content_hash([file_hash(start), space.hash, *images])
    scores.save(
        out,
        recipe=recipe.to_dict(),
        space=space.to_dict(),
        class_names=list(train.class_names),
        identity=identity,
        certificate=certificate.to_dict(),
    )
    return {"scores": str(out), "loss": scores.loss, "tau": certificate.tau, "networks": networks}
