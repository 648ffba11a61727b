"""How is a detector prepared for its device? (memory layout, half precision, torch.compile)"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.detector.faster_rcnn import FasterRCNN
from adapt.detector.file import DetectorInfo
from adapt.network.backbone import Backbone
from adapt.network.mixed import MixedOperation
from adapt.network.operations import ConvOperation
from adapt.network.supernet import Supernet
from adapt.network.sync_norm import synchronise
from search.recipe.optimisation import ComputeRecipe
from search.train.world import World

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def place(model: RetinaNet, compute: ComputeRecipe, world: World) -> RetinaNet:
    """Move a detector to its device, and let it compute there as a recipe asks.

    Args:
        model: The detector; its parameters keep their names.
        compute: Memory layout, precision, compilation and recomputation.
        world: The processes.
    """
    if world.size > 1 and compute.sync_batch_norm:
        synchronise(model, world.device)
    layout = compute.memory_format(world.device.type)
    placed: RetinaNet = model.to(device=world.device, memory_format=layout)
    world.same_start(placed)
    body = placed.backbone.body
    if isinstance(body, Supernet):
        body.recompute = compute.recompute
    if compute.compile:
        _compile(placed)
    if compute.amp != "off":
        _mix_precisions(placed, DTYPES[compute.amp], world.device.type)
    return placed


def plain_detector(info: DetectorInfo, compute: ComputeRecipe, world: World) -> RetinaNet:
    """Return a fresh detector on its device that computes as a detector file does when loaded.

    That is in fp32, not compiled, and without exchanges between processes. The run's random numbers
    stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        model = info.build()
    layout = replace(compute, amp="off").memory_format(world.device.type)
    return model.to(device=world.device, memory_format=layout)


def _mix_precisions(model: RetinaNet, dtype: torch.dtype, device: str) -> None:
    """Let backbone, pyramid and heads compute in ``dtype`` and return float32."""
    # Not the whole detector: torchvision makes anchors of the type of the feature maps, and half
    # precision moves boxes by pixels.
    for part in (model.backbone, *_head_layers(model)):
        part.forward = _autocast(part.forward, torch.autocast(device, dtype))
    # On a CPU, PyTorch 2.14 computes wrong bf16 gradients for a strided convolution of a 1x1 map,
    # which P6 is in small images.
    extra = model.backbone.fpn.extra_blocks
    extra.forward = _autocast(extra.forward, torch.autocast(device, enabled=False))


def _compile(model: RetinaNet) -> None:
    """Compile backbone, pyramid and heads; of a supernet, each candidate by itself."""
    # Every shape of a candidate is a graph of its own, and so is every padded size of a batch.
    torch._dynamo.config.recompile_limit = 512
    torch._dynamo.config.accumulated_recompile_limit = 1024
    body = model.backbone.body
    if isinstance(body, Backbone):
        body.compile()
    else:
        # The whole supernet has another graph for every sampled path, a candidate always the same.
        mixed = (m for m in body.modules() if isinstance(m, MixedOperation))
        for op in (op for m in mixed for op in m.ops if isinstance(op, ConvOperation)):
            op.branch = torch.compile(op.branch)  # type: ignore[method-assign]
    model.backbone.fpn.compile()
    for part in _head_layers(model):
        part.compile()


def _head_layers(model: RetinaNet | FasterRCNN) -> list[nn.Module]:
    """Return the modules of the heads that compute with parameters."""
    return model.layers_of_head if isinstance(model, FasterRCNN) else [model.head]


def _autocast(forward: Callable[..., Any], context: torch.autocast) -> Callable[..., Any]:
    """Wrap a forward pass in an autocast context; inputs and outputs are float32."""

    def wrapped(*inputs: Any) -> Any:
        with context:
            return _float(forward(*map(_float, inputs)))

    return wrapped


def _float(value: Any) -> Any:
    """Return tensors, and what holds some, as float32; everything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((name, _float(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_float(item) for item in value)
    return value
