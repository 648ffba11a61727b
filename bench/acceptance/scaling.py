"""Which detector does scaling the source by one factor give? (the opponents of a search)"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapt.architecture import Architecture
from adapt.detector.config import RetinaNetConfig
from search.recipe.joint import Setting

Held = Mapping[int, int]  # widths of blocks, by their places from 0
MULTIPLE = 8  # of channels: what runtimes compute without filling up


@dataclass(frozen=True)
class Sized:
    """A backbone and the detector around it.

    Attributes:
        architecture: The backbone.
        setting: Pyramid, heads and input.
    """

    architecture: Architecture
    setting: Setting

    @property
    def detector(self) -> RetinaNetConfig:
        """Pyramid and heads."""
        return self.setting.detector

    def changes(self) -> dict[str, Any]:
        """Return the fields of a recipe that give this detector."""
        return self.setting.changes()


def scaled(
    source: Architecture, rule: str, factor: float, setting: Setting, held: Held | None = None
) -> Sized:
    """Return the source scaled by a rule.

    Args:
        source: The source.
        rule: ``source``, ``width``, ``compound`` or ``expansion``.
        factor: Of the widths; of ``expansion`` the expansion of every operation.
        setting: Pyramid, heads and input of the recipe.
        held: Widths of blocks that are not scaled by ``width``, by their places from 0.
    """
    detector = setting.detector
    match rule:
        case "source":
            return Sized(source, setting)
        case "expansion":
            return Sized(_expanded(source, int(factor)), setting)
        case "width":
            return Sized(_narrowed(source, factor, held or {}), setting)
        case "compound":
            width = multiple(detector.fpn_width * factor)
            depth = max(1, round(detector.head_depth * factor))
            config = replace(detector, fpn_width=width, head_depth=depth)
            return Sized(_narrowed(source, factor, {}), replace(setting, detector=config))
        case _:
            raise AssertionError(rule)


def multiple(channels: float) -> int:
    """Return the nearest multiple of :data:`MULTIPLE` channels, at least one."""
    return max(MULTIPLE, MULTIPLE * int(channels / MULTIPLE + 0.5))


def _narrowed(source: Architecture, factor: float, held: Held) -> Architecture:
    blocks = [
        replace(block, width=held.get(number, multiple(block.width * factor)))
        for number, block in enumerate(source.blocks)
    ]
    return replace(source, blocks=tuple(blocks))


def _expanded(source: Architecture, expansion: int) -> Architecture:
    blocks = []
    for block in source.blocks:
        ops = tuple(replace(op, expansion=expansion) for op in block.ops)
        blocks.append(replace(block, ops=ops))
    return replace(source, blocks=tuple(blocks))
