"""How does BatchNorm use the statistics of all processes?"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class _SyncedNorm(Function):
    """Normalise by the statistics of all processes: one exchange forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        local = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local)
        sizes = [len(mean), len(mean), 1]
        means, variances, counts = torch.split(torch.stack(gathered), sizes, dim=1)
        number = counts.sum()
        mean = (counts * means).sum(0) / number
        # From deviations, not from sums of squares: their difference would lose digits.
        variance = (counts * (variances + (means - mean).square())).sum(0) / number
        ctx.save_for_backward(x, weight, mean, variance, number)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, number)
        out = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return out, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (x, weight, mean, variance, number) = gradients[0], ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        shift = gradient.sum((0, 2, 3))
        scale = (gradient * x).sum((0, 2, 3)) - mean * shift
        both = torch.stack([shift, scale])
        dist.all_reduce(both)
        slope = inverse.square() * both[1] / number
        factor = inverse if weight is None else inverse * weight
        passed = gradient - x * _channels(slope) + _channels(mean * slope - both[0] / number)
        return (
            passed.mul_(_channels(factor)),
            None if weight is None else scale * inverse,
            None if weight is None else shift,
            None,
        )


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes; PyTorch's SyncBatchNorm is for GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``Tensor[N, C, H, W]`` by the statistics of all processes' tensors."""
        if not (self.training or self.running_mean is None):
            out: Tensor = super().forward(x)
            return out
        values = x if x.dtype == torch.float64 else x.float()
        weight, bias = (self.weight, self.bias) if self.affine else (None, None)
        out, mean, variance, number = _SyncedNorm.apply(values, weight, bias, self.eps)
        if self.training and self.running_mean is not None:
            self._remember(mean, variance, number)
        return out.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * number / (number - 1).clamp_min(1), share)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with synchronised BatchNorm layers, which keep their parameters."""
    if device.type == "cuda":
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        converted: nn.Module = convert(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, _converted(child))
        else:
            synchronise(child, device)
    return module


def _converted(norm: nn.BatchNorm2d) -> SyncedBatchNorm:
    synced = SyncedBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    # The same tensors, not copies: an optimizer may hold them already.
    synced._parameters, synced._buffers = norm._parameters, norm._buffers
    return synced.train(norm.training)
