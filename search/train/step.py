"""How is one training step taken? (detection loss, backward pass, clipping, optimizer)"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models.detection import RetinaNet

from adapt.data.dataset import Batch
from adapt.errors import AdaptError
from search.recipe.optimisation import Amp
from search.train.world import World

LEARNED = ("boxes", "labels", "crowds")  # of a target


def detection_losses(model: RetinaNet, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Return the losses of a batch by name, such as ``classification`` and ``bbox_regression``."""
    images, targets = batch
    on_device = [
        {name: t[name].to(device, non_blocking=True) for name in LEARNED if name in t}
        for t in targets
    ]
    losses: dict[str, Tensor] = model(
        [image.to(device, non_blocking=True) for image in images], on_device
    )
    return losses


def detection_loss(model: RetinaNet, batch: Batch, device: torch.device) -> Tensor:
    """Return the detection loss of a batch: classification plus regression, L_model of Eq. 4."""
    return torch.stack(list(detection_losses(model, batch, device).values())).sum()


class DivergedError(AdaptError):
    """Training diverged: the loss or the gradient is not a finite number.

    Attributes:
        image_ids: The images of the batch, of all processes.
    """

    def __init__(self, what: str, image_ids: list[int]) -> None:
        self.image_ids = image_ids
        super().__init__(
            f"{what} on images {image_ids}; lower the learning rate, or look at these images with "
            "`adapt data check`"
        )


# Smallest factor of GradScaler. A gradient that overflows fp16 even unscaled has diverged.
LEAST_SCALE = 1.0


class Stepper:
    """Takes the steps of one optimizer, together with the other processes of a training.

    Args:
        optimizer: Updates the parameters.
        parameters: What is trained.
        clip_norm: Largest L2 norm of the gradient; 0 for no clipping.
        amp: ``fp16`` scales the loss, so that small gradients do not vanish.
        world: The processes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: list[nn.Parameter],
        clip_norm: float,
        amp: Amp,
        world: World,
    ) -> None:
        self.optimizer, self.parameters, self.clip_norm = optimizer, parameters, clip_norm
        self.world = world
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=amp == "fp16")

    def step(self, losses: Iterable[tuple[float, Callable[[], Tensor]]], batch: Batch) -> float:
        """Take one step down the gradient of a weighted sum of losses.

        Args:
            losses: Weight of each loss, and the function that computes it.
            batch: The images, for the error.

        Returns:
            The weighted sum, averaged over all processes.

        Raises:
            DivergedError: If it, or the gradient, is not finite; no parameter is updated then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for weight, compute_loss in losses:
            loss = weight * compute_loss()
            total += float(loss.detach())
            # Backward at once, so that memory holds the graph of one loss at a time.
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        value = self.world.mean(total)
        if not math.isfinite(value):
            raise self._divergence(f"the loss became {value}", batch)
        self.world.average_gradients(self.parameters)
        self._update(batch)
        return value

    def _update(self, batch: Batch) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        # With a scaled loss, an overflow only means that the scaler skips the step and scales less.
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise self._divergence(f"the gradient's norm became {norm}", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise self._divergence("the gradient overflows fp16 however little it is scaled", batch)

    def _divergence(self, what: str, batch: Batch) -> DivergedError:
        self.optimizer.zero_grad(set_to_none=True)
        ids = self.world.gather([int(target["image_id"]) for target in batch[1]])
        return DivergedError(what, ids)
