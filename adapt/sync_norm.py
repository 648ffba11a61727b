"""How does BatchNorm see the batch of all processes?"""

import torch
from torch import Tensor, nn


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes, for devices that PyTorch's SyncBatchNorm refuses.

    Every process must hold as many images of the same size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``Tensor[N, C, H, W]`` by the statistics of all processes' tensors."""
        if not (self.training or self.running_mean is None):
            out: Tensor = super().forward(x)
            return out
        mean = _mean(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        # In a second round: the difference of two large sums would lose digits.
        variance = _mean(centred.square().mean((0, 2, 3)))
        if self.training and self.running_mean is not None:
            self._remember(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        factor = (variance + self.eps).rsqrt()
        if self.affine:
            scaled = centred * (factor * self.weight)[:, None, None]
            return scaled + self.bias[:, None, None]
        return centred * factor[:, None, None]

    def _remember(self, mean: Tensor, variance: Tensor, own_values: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        values = own_values * torch.distributed.get_world_size()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * values / max(1, values - 1), share)


def _mean(tensor: Tensor) -> Tensor:
    """Average over all processes; the gradient is averaged over them too."""
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
    return total / torch.distributed.get_world_size()


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
