"""How does BatchNorm see the batch of all processes?"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over all processes' batches, where PyTorch's SyncBatchNorm refuses the device."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``Tensor[N, C, H, W]`` by the statistics of all processes' tensors."""
        if not (self.training or self.running_mean is None):
            out: Tensor = super().forward(x)
            return out
        values = x if x.dtype == torch.float64 else x.float()
        count = values.new_tensor([values.numel() // values.shape[1]])
        totals = _sum(torch.cat([values.sum((0, 2, 3)), count]))
        number = totals[-1]
        mean = totals[:-1] / number
        centred = values - mean[:, None, None]
        # In a second round: the difference of two large sums would lose digits.
        variance = _sum(centred.square().sum((0, 2, 3))) / number
        if self.training and self.running_mean is not None:
            self._remember(mean.detach(), variance.detach(), number.detach())
        factor = (variance + self.eps).rsqrt()
        if self.affine:
            scaled = centred * (factor * self.weight)[:, None, None] + self.bias[:, None, None]
        else:
            scaled = centred * factor[:, None, None]
        return scaled.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * number / (number - 1).clamp_min(1), share)


class _Sum(Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)
    return total


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module whose BatchNorm layers share their statistics; parameters are kept."""
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
    # The very tensors, so that optimizers made before keep theirs.
    synced._parameters, synced._buffers = norm._parameters, norm._buffers
    return synced.train(norm.training)
