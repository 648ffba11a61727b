"""How far does AP depend on the images that it is measured on? (bootstrap)"""

import copy
import io
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from adapt.progress import Progress, silent

SAMPLES = 500
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bootstrapped(
    evaluations: Sequence[COCOeval],
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = silent,
) -> Floats:
    """Return ``float64[samples, M]``, APs on images drawn with replacement.

    Every sample draws the same images for all evaluations, so that differences of a row are paired.
    What is matched in an image is not computed again.

    Args:
        evaluations: M evaluations of the same images, as
            :func:`adapt.data.evaluate.coco_evaluation` returns them.
        samples: How often images are drawn.
        seed: Which ones.
        progress: Told after every sample.
    """
    number = len(evaluations[0].params.imgIds)
    chance = np.random.default_rng(seed)
    drawn = chance.integers(0, number, (samples, number))
    found = np.empty((samples, len(evaluations)))
    for row, images in enumerate(drawn):
        found[row] = [resampled_ap(evaluation, images) for evaluation in evaluations]
        progress(row + 1, samples)
    return found


def resampled_ap(evaluation: COCOeval, images: Ints) -> float:
    """Return AP on some of the images; one may count several times.

    Args:
        evaluation: An evaluation of all images.
        images: Their places.
    """
    params = copy.copy(evaluation.params)
    number, sizes = len(params.imgIds), len(params.areaRng)
    # By class, then by size of the objects, of which the first is any.
    starts = range(0, len(evaluation.evalImgs), sizes * number)
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    params.maxDets = params.maxDets[-1:]
    params.imgIds = list(range(len(images)))
    part = copy.copy(evaluation)
    part.params = part._paramsEval = params
    part.evalImgs = [evaluation.evalImgs[start + place] for start in starts for place in images]
    with redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        part.accumulate()
    precision = part.eval["precision"]
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0
