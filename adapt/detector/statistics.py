"""How do the BatchNorms of a network get the statistics of images? (recalibration)"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.data.dataset import Batch


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def recalibrate(
    model: RetinaNet,
    batches: Iterable[Batch],
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> None:
    """Set the running statistics of a detector's BatchNorms to their means over batches.

    Networks that share a supernet's weights, and weights that are averages over steps, have other
    means and variances than those that were seen in training.

    Args:
        model: A detector; in evaluation mode afterwards.
        batches: Images.
        device: Where the model is.
        layout: How feature maps lie in memory.
    """

    def prepared(batch: Batch) -> Tensor:
        images, _ = model.transform([image.to(device) for image in batch[0]])
        tensors: Tensor = images.tensors.contiguous(memory_format=layout)
        return tensors

    model.eval()
    # Most heads have no BatchNorm: the backbone and its pyramid are enough.
    network = _UpToHeads(model) if batch_norms(model.head) else model.backbone
    recalibrate_network(network, map(prepared, batches))


class _UpToHeads(nn.Module):
    """Backbone, pyramid and heads of a detector."""

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the heads for ``Tensor[N, 3, H, W]``."""
        outputs: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return outputs


@torch.no_grad()
def recalibrate_network(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the running statistics of a network's BatchNorms to their means over its inputs.

    Args:
        network: Such as a backbone; in evaluation mode afterwards.
        inputs: What it is called with.
    """
    network.eval()
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean, in which all batches count the same
        norm.train()
    for batch in inputs:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
