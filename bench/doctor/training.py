"""Does a GPU train as the processor does, and compute fp32 in fp32?"""

import copy

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.data.dataset import Batch
from adapt.detector.file import load_detector
from adapt.runtime import exact_fp32
from bench.doctor.contained import Reading
from bench.doctor.tiny import SIZE, Files, images
from export.run.inference import unit
from search.recipe.optimisation import Amp, ComputeRecipe, Optimisation
from search.train.optimizer import build_optimizer
from search.train.placement import place
from search.train.step import Stepper, detection_loss
from search.train.world import World

FP32 = 1e-5  # relative; TF32 is off by about 1e-3
LOSS: dict[Amp, float] = {"off": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
STEPS = 3


def check_fp32(device: str = "cuda") -> list[Reading]:
    """Compare a convolution on the GPU in fp32 with the processor's in fp64."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 64, 3).eval()
    x = torch.randn(2, 64, 32, 32)
    exact = copy.deepcopy(convolution).double()(x.double())
    there, x = convolution.to(device), x.to(device)
    with exact_fp32():
        error = _relative(there(x), exact)
    return [
        Reading("fp32 off by", error, FP32),
        Reading("by PyTorch's default", _relative(there(x), exact)),
    ]


def _relative(found: Tensor, exact: Tensor) -> float:
    difference = (found.cpu().double() - exact).detach()
    return float(difference.square().mean().sqrt() / exact.detach().std())


def check_training(files: Files, amp: Amp, device: str = "cuda") -> list[Reading]:
    """Take three steps on the GPU and on the processor, and compare the losses."""
    with exact_fp32():
        expected = _losses(files, "off", "cpu")
        losses = _losses(files, amp, device)
    apart = [abs(a / b - 1) for a, b in zip(losses, expected, strict=True)]
    # Rounding grows from step to step: the gradients on a GPU are summed in any order.
    return [
        Reading("first loss off by", apart[0], LOSS[amp]),
        Reading(f"loss {STEPS} off by", apart[-1], 20 * LOSS[amp]),
    ]


def _losses(files: Files, amp: Amp, device: str) -> list[float]:
    """Return the losses of the steps."""
    torch.manual_seed(0)
    model, _ = load_detector(files.detector)
    world = World(0, 1, torch.device(device))
    placed = place(model, ComputeRecipe(amp=amp), world).train()
    stepper = _stepper(placed, amp, world)
    batch = _batch()
    return [
        stepper.step([(1.0, lambda: detection_loss(placed, batch, world.device))], batch)
        for _ in range(STEPS)
    ]


def _stepper(model: RetinaNet, amp: Amp, world: World) -> Stepper:
    optimisation = Optimisation(lr=1e-3, weight_decay=0.0)
    parameters = list(model.parameters())
    return Stepper(build_optimizer(parameters, optimisation), parameters, 10.0, amp, world)


def _batch() -> Batch:
    box = torch.tensor([[8.0, 8.0, SIZE.width / 2, SIZE.height / 2]])
    pixels = unit(images(2, seed=5))
    targets = [
        {"boxes": box, "labels": torch.tensor([1]), "image_id": torch.tensor(n)}
        for n in range(len(pixels))
    ]
    return [torch.from_numpy(image) for image in pixels], targets
