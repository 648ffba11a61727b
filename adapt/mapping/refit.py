"""How do copied projections make up for channels that were not copied? (least squares)

A narrow operation reads other activations than the source's: fewer hidden channels, of inputs that
are not quite the source's. Its projection is fitted, in closed form, to what the source computes
at its place on unlabelled images, as ThiNet (arXiv 1707.06342) does for pruned layers. The
operations are fitted in order, so that each makes up for those before it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from adapt.mapping.activations import Moments, Spread
from adapt.mapping.layers import matrix, projection, scale_and_shift
from adapt.mapping.pretrained import operations_of
from adapt.network.backbone import Backbone
from adapt.network.operations import Bottleneck, ConvOperation

RIDGE = 0.1  # of the mean variance of hidden channels; 0.01 loses as little, 1 somewhat more
CHECKED = 4  # every fourth image decides which fit is taken, and takes no part in it
PAYS = 0.005  # of the wanted variance: what a more daring fit must leave less


@torch.no_grad()
def refit(source: Backbone, target: Backbone, images: Iterable[Tensor]) -> None:
    """Fit the projections of a mapped backbone to the source, in place.

    The output of an operation should bring its block's channels to what the source has there after
    as many operations; that of the last one to what the source's block ends with. Where an
    activation follows, both are what comes before it. Three fits are
    tried, each more daring: the copied weight with BatchNorm statistics of the images, a factor per
    output channel, and all weights by ridge regression around that. From the first operation that
    was not copied whole, BatchNorms get the statistics of the images.

    Args:
        source: What was mapped, in evaluation mode.
        target: Onto what; in evaluation mode afterwards.
        images: Unlabelled normalised images, each ``Tensor[N, 3, H, W]``.
    """
    target.eval()
    wanted = inputs = [source.features[:2](image) for image in images]
    whole = True
    for of_source, of_target in zip(operations_of(source), operations_of(target), strict=True):
        for position, (_, op) in enumerate(of_target):
            last = position == len(of_target) - 1
            for _, passed in of_source[position : len(of_source) if last else position + 1]:
                goals = [passed.summed(x, passed.branch(x)) for x in wanted]
                wanted = [passed.finished(goal.clone()) for goal in goals]
            # As long as everything was copied, there is nothing to make up for.
            whole &= len(of_source) == len(of_target) and op.shape == of_source[position][1].shape
            if not whole:
                _fit(op, inputs, goals)
            inputs = [op(x) for x in inputs]


def _fit(op: ConvOperation, inputs: Sequence[Tensor], goals: Sequence[Tensor]) -> None:
    layers = list(op.conv)[:-2]
    for number, layer in enumerate(layers):
        if isinstance(layer, SqueezeExcitation):  # has no BatchNorm
            continue
        assert isinstance(layer, nn.Sequential)
        _measure(layer[1], nn.Sequential(*layers[:number], layer[0]), inputs)
    if isinstance(op, Bottleneck) and isinstance(op.shortcut, nn.Sequential):
        _measure(op.shortcut[1], op.shortcut[0], inputs)
    hidden = nn.Sequential(*layers)
    width, channels = op.shape.hidden, min(op.shape.c_out, goals[0].shape[1])
    fitted, checked = Moments(width + channels), Moments(width + channels)
    for number, (x, goal) in enumerate(zip(inputs, goals, strict=True)):
        beside = op.summed(x, torch.zeros_like(goal[:, :1]))  # what the projection is added to
        missing = goal[:, :channels] - beside[:, :channels]
        moments = checked if number % CHECKED == CHECKED - 1 else fitted
        moments.add(torch.cat([hidden(x), missing], dim=1))
    _write(op, fitted, checked if len(inputs) >= CHECKED else fitted, width, channels)


def _write(op: ConvOperation, fitted: Moments, checked: Moments, width: int, channels: int) -> None:
    """Give the projection the best weight, and its BatchNorm the statistics that go with it."""
    project, norm = projection(op)
    gram, mean = fitted.covariance[:width, :width], fitted.mean
    _normalise(norm, matrix(project) @ mean[:width], _variance(matrix(project), gram))
    copied = scale_and_shift(norm)[0][:channels, None] * matrix(project)[:channels]
    best = _best(copied, fitted, checked)
    if best is copied:
        return
    project.weight[:channels] = best[:, :, None, None].to(project.weight.dtype)
    variance = _variance(matrix(project), gram)
    _normalise(norm, matrix(project) @ mean[:width], variance)
    norm.weight[:channels] = (variance[:channels] + norm.eps).sqrt().to(norm.weight.dtype)
    norm.bias[:channels] = mean[width:].to(norm.bias.dtype)


def _best(copied: Tensor, fitted: Moments, checked: Moments) -> Tensor:
    """Return the weight that leaves the least, Tensor[C, hidden]; ``copied`` unless others pay."""
    width = copied.shape[1]
    gram, cross = fitted.covariance[:width, :width], fitted.covariance[width:, :width]
    tiny = torch.finfo(gram.dtype).tiny
    agreement = (copied * cross).sum(1) / _variance(copied, gram).clamp_min(tiny)
    scaled = agreement.clamp(0, 1)[:, None] * copied
    ridge = RIDGE * gram.diagonal().mean().clamp_min(tiny)
    loaded = gram + ridge * torch.eye(width, dtype=gram.dtype)
    regressed = torch.linalg.solve(loaded, (cross + ridge * scaled).T).T
    best, least = copied, _error(copied, checked)
    for weight in (scaled, regressed):
        error = _error(weight, checked)
        if error < least - PAYS:
            best, least = weight, error
    return best


def _error(weight: Tensor, moments: Moments) -> float:
    """Return the share of the wanted variance that a weight leaves, up to a constant offset."""
    width, covariance = weight.shape[1], moments.covariance
    gram, cross, wanted = (
        covariance[:width, :width],
        covariance[width:, :width],
        covariance[width:, width:],
    )
    reached = _variance(weight, gram) - 2 * (weight * cross).sum(1)
    return 1 + float(reached.sum() / wanted.diagonal().sum().clamp_min(torch.finfo().tiny))


def _variance(weight: Tensor, gram: Tensor) -> Tensor:
    """Return Tensor[C], the variance of every output of a weight, Tensor[C, hidden]."""
    return ((weight @ gram) * weight).sum(1).clamp_min(0)


def _measure(norm: nn.Module, convolved: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Give a BatchNorm the statistics of what it reads."""
    spread = Spread()
    for x in inputs:
        spread.add(convolved(x))
    _normalise(norm, spread.mean, spread.variance)


def _normalise(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
