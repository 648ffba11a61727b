"""Which pretrained backbones can be adapted, and what of a search space is theirs?"""

from dataclasses import replace

from adapt.architecture import Architecture, Block
from adapt.errors import AdaptError
from adapt.space import Operation, SearchSpace


def mobilenet_v2() -> Architecture:
    """Return MobileNetV2 (Sandler et al., Table 2) up to its last bottleneck.

    A detector's backbone has neither the 1x1 convolution to 1280 channels nor the classifier.
    """
    rows = ((2, 24, 2), (2, 32, 3), (2, 64, 4), (1, 96, 3), (2, 160, 3), (1, 320, 1))
    blocks = tuple(Block(stride, width, (Operation(3, 6),) * n) for stride, width, n in rows)
    return Architecture("mobilenet_v2", 32, 16, (2, 4, 6), blocks)


def efficientnet_lite0() -> Architecture:
    """Return EfficientNet-Lite0 up to its last bottleneck.

    That is EfficientNet-B0 (Tan and Le, Table 1) without squeeze-excitation and with ReLU6.
    """
    rows = (
        (2, 24, 3, 2),
        (2, 40, 5, 2),
        (2, 80, 3, 3),
        (1, 112, 5, 3),
        (2, 192, 5, 4),
        (1, 320, 3, 1),
    )
    blocks = tuple(
        Block(stride, width, (Operation(kernel, 6),) * n) for stride, width, kernel, n in rows
    )
    return Architecture("efficientnet_lite0", 32, 16, (2, 4, 6), blocks)


def mnasnet1_0() -> Architecture:
    """Return MnasNet-B1 (Tan et al.) as torchvision has it, up to its last bottleneck."""
    rows = (
        (2, 24, "k3_e3", 3),
        (2, 40, "k5_e3", 3),
        (2, 80, "k5_e6", 3),
        (1, 96, "k3_e6", 2),
        (2, 192, "k5_e6", 4),
        (1, 320, "k3_e6", 1),
    )
    blocks = tuple(
        Block(stride, width, (Operation.parse(op),) * n) for stride, width, op, n in rows
    )
    return Architecture("mnasnet1_0", 32, 16, (2, 4, 6), blocks)


def mobilenet_v3_large() -> Architecture:
    """Return MobileNetV3-Large (Howard et al., Table 1) up to its last bottleneck."""
    rows = (
        (2, 24, "k3_e4 k3_e3"),
        (2, 40, "k5_e3_se k5_e3_se k5_e3_se"),
        (2, 80, "k3_e6 k3_e2.5 k3_e2.3 k3_e2.3"),
        (1, 112, "k3_e6_se k3_e6_se"),
        (2, 160, "k5_e6_se k5_e6_se k5_e6_se"),
    )
    blocks = tuple(
        Block(stride, width, tuple(map(Operation.parse, ops.split())))
        for stride, width, ops in rows
    )
    return Architecture("mobilenet_v3_large", 16, 16, (2, 4, 5), blocks)


def resnet50() -> Architecture:
    """Return ResNet-50 (He et al., Table 1) as torchvision has it, without its classifier."""
    rows = ((1, 256, 3), (2, 512, 4), (2, 1024, 6), (2, 2048, 3))
    blocks = tuple(Block(stride, width, (Operation(3, 0.25),) * n) for stride, width, n in rows)
    return Architecture("resnet50", 64, 64, (2, 3, 4), blocks)


SOURCES = {
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_lite0": efficientnet_lite0,
    "mnasnet1_0": mnasnet1_0,
    "mobilenet_v3_large": mobilenet_v3_large,
    "resnet50": resnet50,
}


def source_named(name: str) -> Architecture:
    """Return a pretrained backbone that can be adapted.

    Raises:
        AdaptError: If there is none of that name.
    """
    if name not in SOURCES:
        raise AdaptError(f"unknown source backbone {name!r}; known: {', '.join(SOURCES)}")
    return SOURCES[name]()


def source_of(space: SearchSpace) -> Architecture | None:
    """Return the network that the candidates of a space adapt, block by block.

    Returns:
        The source, whether or not its widths and operations are candidates; None if the space has
        another stem, first block or number of blocks, so that no parameters can be mapped, or if
        its source is unknown.
    """
    if space.source not in SOURCES:
        return None
    source = source_named(space.source)
    fixed = ("source", "stem_width", "first_width")
    same = all(getattr(space, name) == getattr(source, name) for name in fixed)
    return source if same and len(space.blocks) == len(source.blocks) else None


def with_source_widths(space: SearchSpace) -> SearchSpace:
    """Return a space in which every block may keep the width that its source has there.

    A block whose candidates are all narrower or all wider than that stays as it is: whoever wrote
    it wants another width.
    """
    source = source_of(space)
    if source is None:
        return space
    blocks = tuple(
        replace(block, widths=tuple(sorted({*block.widths, of.width})))
        if block.widths[0] < of.width < block.widths[-1]
        else block
        for block, of in zip(space.blocks, source.blocks, strict=True)
    )
    return replace(space, blocks=blocks)
