"""How do pretrained parameters reach a network of another depth, width and kernel size?

Paper section III-B. An operation copies the source's operation at its position in the same block;
those beyond the source's depth copy its last one. Of channels the first ones are copied, of kernels
the centre. All other elements are surplus and start at zero, or at noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from adapt.architecture import Architecture
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.network.mixed import MixedBlock
from adapt.network.operations import Bottleneck, ConvOperation, MBConv
from adapt.network.supernet import Supernet
from adapt.traits import traits_of

SATURATED = 3.0  # where hardsigmoid becomes 1
MappingMode = Literal["paper", "identity", "principal", "refit"]


@dataclass
class MappingReport:
    """How much of every tensor comes from the source.

    Attributes:
        copied: Per tensor name (copied elements, all elements).
        lost_variance: Share of the variance of C3 to C5 that the mapping lost, see
            :func:`adapt.mapping.lost.lost_variance`; empty if it was not measured.
        new_classes: Classes that a trained source does not know.
    """

    copied: dict[str, tuple[int, int]] = field(default_factory=dict)
    lost_variance: dict[str, float] = field(default_factory=dict)
    new_classes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of all elements that come from the source."""
        return sum(c for c, _ in self.copied.values()) / sum(n for _, n in self.copied.values())


@dataclass
class Mapper:
    """Copies parameters between modules of different sizes.

    Args:
        noise: Standard deviation of the normal noise on surplus elements, which lets gradients
            reach them (paper III-B); 0 for none.
        generator: Source of the noise.
    """

    noise: float
    generator: torch.Generator
    report: MappingReport = field(default_factory=MappingReport)

    @torch.no_grad()
    def copy(self, name: str, source: Tensor, target: Tensor, *, noisy: bool = True) -> None:
        """Fill ``target`` with the overlapping part of ``source``, and zero or noise elsewhere."""
        into, out_of = _overlap(target.shape, source.shape)
        mapped = torch.zeros_like(target)
        if noisy and self.noise:
            mapped.normal_(0, self.noise, generator=self.generator)
        mapped[into] = source[out_of].to(target.dtype)
        target.copy_(mapped)
        self.report.copied[name] = (target[into].numel(), target.numel())

    @torch.no_grad()
    def norm(self, name: str, source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
        """Map a BatchNorm, as far as the target has scale, shift and statistics.

        Surplus channels get scale and shift 0, mean 0 and variance 1, so the function is kept.
        """
        if target.affine:
            # Noise on the scale as well: at exactly 0, ReLU6 passes no gradient and the channel
            # would stay dead.
            self.copy(f"{name}.weight", source.weight, target.weight)
            self.copy(f"{name}.bias", source.bias, target.bias, noisy=False)
        if target.running_mean is not None and target.running_var is not None:
            assert source.running_mean is not None
            assert source.running_var is not None
            self.copy(f"{name}.running_mean", source.running_mean, target.running_mean, noisy=False)
            self.copy(f"{name}.running_var", source.running_var, target.running_var, noisy=False)
            target.running_var[len(source.running_var) :] = 1
            if target.num_batches_tracked is not None and source.num_batches_tracked is not None:
                target.num_batches_tracked.copy_(source.num_batches_tracked)

    def operation(self, name: str, source: ConvOperation, target: ConvOperation) -> None:
        """Map an operation: expansion (first hidden channels), kernel (centred), channels (first).

        A bottleneck has a projected shortcut if it is the first of its block, and so has what is
        mapped onto it.
        """
        self._chain(f"{name}.conv", source.conv, target.conv)
        if isinstance(source, Bottleneck) and isinstance(target, Bottleneck):
            if not target.shape.residual:
                self._chain(f"{name}.shortcut", source.shortcut, target.shortcut)
        elif isinstance(source, MBConv) and isinstance(target, MBConv):
            if target.shape.expansion > source.shape.expansion == 1:
                self._surplus_expansion(f"{name}.conv", target.conv)
            for layer, to_se in _excitations(target.conv):
                of = _excitations(source.conv)
                self._excitation(f"{name}.conv.{layer}", of[0][1] if of else None, to_se)

    def _chain(self, name: str, source: nn.Module, target: nn.Module) -> None:
        # Paired from the end: an MBConv without expansion has no first convolution.
        convs = zip(reversed(_convs(source)), reversed(_convs(target)), strict=False)
        for (_, from_conv), (layer, to_conv) in convs:
            self.copy(f"{name}.{layer}.weight", from_conv.weight, to_conv.weight)
        norms = zip(reversed(_norms(source)), reversed(_norms(target)), strict=False)
        for (_, from_norm), (layer, to_norm) in norms:
            self.norm(f"{name}.{layer}", from_norm, to_norm)

    @torch.no_grad()
    def _excitation(
        self, name: str, source: SqueezeExcitation | None, target: SqueezeExcitation
    ) -> None:
        """Map a squeeze-excitation; one that the source lacks multiplies by 1 (but for noise).

        Without noise it has no gradient there, and goes on multiplying by 1.
        """
        tensors = source.state_dict() if source else {}
        for key, tensor in target.state_dict().items():
            of = tensors.get(key, tensor[(slice(0),) * tensor.dim()])
            self.copy(f"{name}.{key}", of, tensor, noisy=key.endswith("weight"))
        if source is None:
            assert target.fc2.bias is not None
            target.fc2.bias.fill_(SATURATED)

    def _surplus_expansion(self, name: str, target: nn.Module) -> None:
        """Fill the expansion layer of an MBConv whose source has none: all of it is surplus."""
        layer, conv = _convs(target)[0]
        self.copy(f"{name}.{layer}.weight", conv.weight[:0, :0], conv.weight)
        layer, norm = _norms(target)[0]
        self.norm(f"{name}.{layer}", nn.BatchNorm2d(0), norm)

    def same_layer(self, name: str, source: nn.Module, target: nn.Module) -> None:
        """Copy a layer that both networks have in the same shape (stem, first block)."""
        target.load_state_dict(source.state_dict())
        for key, tensor in target.state_dict().items():
            self.report.copied[f"{name}.{key}"] = (tensor.numel(), tensor.numel())


def _convs(module: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions of a module, without those of squeeze-excitation."""
    named = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    inside = {m for _, se in _excitations(module) for m in (se.fc1, se.fc2)}
    return [(n, m) for n, m in named if m not in inside]


def _excitations(module: nn.Module) -> list[tuple[str, SqueezeExcitation]]:
    return [(n, m) for n, m in module.named_modules() if isinstance(m, SqueezeExcitation)]


def _norms(module: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]


def _overlap(target: torch.Size, source: torch.Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices (target, source) of the part both have: first channels, centred kernel."""
    into, out_of = [], []
    for axis, (target_length, source_length) in enumerate(zip(target, source, strict=True)):
        common = min(target_length, source_length)
        kernel = axis >= 2
        into.append(_centre(target_length, common) if kernel else slice(common))
        out_of.append(_centre(source_length, common) if kernel else slice(common))
    return tuple(into), tuple(out_of)


def _centre(length: int, part: int) -> slice:
    start = (length - part) // 2
    return slice(start, start + part)


def map_backbone(
    source: Backbone,
    target: Backbone,
    *,
    mode: MappingMode = "paper",
    noise: float = 1e-3,
    generator: torch.Generator | None = None,
) -> MappingReport:
    """Map the parameters of ``source`` onto ``target``, in place.

    Args:
        source: Backbone with trained parameters.
        target: Any backbone of as many blocks, with the same stem and first block.
        mode: ``paper`` copies a block's last operation to extra ones and adds noise. ``identity``
            keeps the function: extra operations contribute zero, surplus channels are dead, no
            noise. ``principal`` and ``refit`` are ``paper`` for a source that
            :func:`adapt.mapping.principal.principal_source` returned.
        noise: Standard deviation of the noise, but in ``identity`` mode.
        generator: Source of the noise; seed 0 if None.

    Raises:
        AdaptError: If the networks differ in what is not searched, or if ``mode`` is ``identity``
            and the target does not contain the source.
    """
    network = target.architecture
    _check_fixed_layers(
        source.architecture, network.stem_width, network.first_width, len(network.blocks)
    )
    if mode == "identity":
        _check_contains(target, source)
    generator = generator or torch.Generator().manual_seed(0)
    mapper = Mapper(0.0 if mode == "identity" else noise, generator)
    for index in range(2):
        mapper.same_layer(f"features.{index}", source.features[index], target.features[index])
    sources = operations_of(source)
    for block, ops in enumerate(operations_of(target)):
        for position, (name, op) in enumerate(ops):
            _, from_op = sources[block][min(position, len(sources[block]) - 1)]
            mapper.operation(name, from_op, op)
            if mode == "identity" and position >= len(sources[block]):
                silence(op)
    return mapper.report


def operations_of(backbone: Backbone) -> list[list[tuple[str, ConvOperation]]]:
    """Return (name, module) of every operation, by block."""
    starts = [2, *(end + 1 for end in backbone.block_ends)]
    blocks = []
    for start, end in zip(starts, backbone.block_ends, strict=False):
        named = [(f"features.{i}", backbone.features[i]) for i in range(start, end + 1)]
        blocks.append([(name, op) for name, op in named if isinstance(op, ConvOperation)])
    return blocks


@torch.no_grad()
def silence(op: ConvOperation) -> None:
    """Make a residual operation contribute zero."""
    _, last = _norms(op.conv)[-1]
    last.weight.zero_()
    last.bias.zero_()


def _check_fixed_layers(
    source: Architecture, stem_width: int, first_width: int, num_blocks: int
) -> None:
    pairs = {
        "stem_width": (source.stem_width, stem_width),
        "first_width": (source.first_width, first_width),
        "number of blocks": (len(source.blocks), num_blocks),
    }
    for name, (of_source, of_target) in pairs.items():
        if of_source != of_target:
            raise AdaptError(
                f"parameters of {source.source} cannot be mapped: its {name} is {of_source}, the "
                f"target's {of_target}; use the source's, or ask for --init scratch"
            )


def _check_contains(target: Backbone, source: Backbone) -> None:
    always_expands = traits_of(source.architecture.source).form == "bottleneck"
    pairs = zip(target.architecture.blocks, source.architecture.blocks, strict=True)
    for number, (to, of) in enumerate(pairs, start=1):
        enough = (
            to.stride == of.stride
            and to.width >= of.width
            and len(to.ops) >= len(of.ops)
            and all(
                a.kernel >= b.kernel
                and a.expansion >= b.expansion
                and (always_expands or (a.expansion == 1) == (b.expansion == 1))
                and a.se >= b.se
                for a, b in zip(to.ops, of.ops, strict=False)
            )
        )
        if not enough:
            raise AdaptError(
                f"identity mapping needs a target that contains the source, but block {number} is "
                f"{to} against {of}; use mode 'paper'"
            )


def map_supernet(
    source: Backbone,
    target: Supernet,
    *,
    noise: float = 1e-3,
    generator: torch.Generator | None = None,
) -> MappingReport:
    """Map the parameters of ``source`` onto every candidate of a supernet, in place.

    Args:
        source: Backbone with trained parameters, of as many blocks.
        target: The supernet.
        noise: Standard deviation of the noise on surplus elements.
        generator: Source of the noise; seed 0 if None.

    Raises:
        AdaptError: If the networks differ in what is not searched.
    """
    space = target.space
    _check_fixed_layers(source.architecture, space.stem_width, space.first_width, len(space.blocks))
    mapper = Mapper(noise, generator or torch.Generator().manual_seed(0))
    mapper.same_layer("stem", source.features[0], target.stem)
    mapper.same_layer("first", source.features[1], target.first)
    sources = operations_of(source)
    for number, block in enumerate(target.blocks):
        for position, name, op in _candidates(block):
            _, from_op = sources[number][min(position, len(sources[number]) - 1)]
            mapper.operation(f"blocks.{number}.{name}", from_op, op)
    return mapper.report


def _candidates(block: nn.Module) -> Iterator[tuple[int, str, ConvOperation]]:
    """Yield (position, name, module) of every candidate of a mixed block but skips."""
    assert isinstance(block, MixedBlock)
    for number, chain in enumerate(block.chains()):
        for position, mixed in enumerate(chain):
            for index, op in enumerate(mixed.ops):
                if isinstance(op, ConvOperation):
                    yield position, f"{number}.{position}.{index}", op
