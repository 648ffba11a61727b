"""How are all networks of a search space trained as one? (paper Fig. 1)"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.architecture import Architecture, Choices
from adapt.network.masks import (
    GateNorm,
    Gates,
    MaskKind,
)
from adapt.network.mixed import (
    IndividualBlocks,
    MixedBlock,
    Paths,
    Recompute,
    Sampled,
    SharedBlock,
)
from adapt.network.operations import fixed_layers, set_norm_eps
from adapt.space import SearchSpace
from adapt.traits import traits_of


class Supernet(nn.Module):
    """Every network of a search space at once, with the interface of a :class:`Backbone`.

    ``alphas`` holds one vector per block and position, ``betas`` one per block. ``paths`` is None
    to run all candidates, or what was sampled. ``recompute`` saves memory, see ``Recompute``.

    Args:
        space: The search space.
        mask: How channels belong to widths (Fig. 2); ``non-overlapping`` is the paper's.
        gate_norm: See :func:`adapt.network.masks.gate`; individual blocks have no gates.
        gates: Where overlapping masks gate; see :class:`SharedBlock`.
        generator: Draws the initial alphas, ``1e-3 * randn``; betas start at zero.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        mask: MaskKind = "non-overlapping",
        gate_norm: GateNorm = "none",
        gates: Gates = "operation",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        traits = traits_of(space.source)
        self.stem, self.first = fixed_layers(space)
        widest = [space.first_width, *(block.widths[-1] for block in space.blocks)]
        self.blocks = nn.ModuleList(
            IndividualBlocks(block, c_in, traits.operations(number))
            if mask == "individual"
            else SharedBlock(block, c_in, mask, gate_norm, gates, traits.operations(number))
            for number, (block, c_in) in enumerate(zip(space.blocks, widest, strict=False))
        )
        self.tap_widths = [space.blocks[tap - 1].widths[-1] for tap in space.taps]
        self.alphas = nn.ModuleList(
            nn.ParameterList(
                1e-3 * torch.randn(len(block.candidates(position)), generator=generator)
                for position in range(block.num_ops)
            )
            for block in space.blocks
        )
        self.betas = nn.ParameterList(torch.zeros(len(block.widths)) for block in space.blocks)
        self.paths: Paths | None = None
        self.recompute: Recompute = "off"
        set_norm_eps(self, space.source)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the tapped feature maps, finest first, keyed ``"0"``, ``"1"``, ...

        Args:
            x: Normalised images, ``Tensor[N, 3, H, W]``.
        """
        x = self.first(self.stem(x))
        ops, widths = self.probabilities()
        taps: OrderedDict[str, Tensor] = OrderedDict()
        reach: Tensor | None = None
        for number, block in enumerate(self.blocks):
            assert isinstance(block, MixedBlock)
            sampled = self.paths[number] if self.paths else [None] * len(ops[number])
            x = self._block(block, x, ops[number], widths[number], sampled, reach)
            reach = block.reach(widths[number])
            if number + 1 in self.space.taps:
                taps[str(len(taps))] = x
        return taps

    def _block(self, block: nn.Module, x: Tensor, *arguments: object) -> Tensor:
        if self.recompute == "block" and torch.is_grad_enabled():
            out: Tensor = checkpoint(
                block, x, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = block(x, *arguments, self.recompute)
        return out

    def probabilities(self) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Return softmax of alpha per block and position, and softmax of beta per block."""
        ops = [[alpha.softmax(0) for alpha in block] for block in self._alpha_lists()]
        return ops, [beta.softmax(0) for beta in self.betas]

    @torch.no_grad()
    def log_probabilities(self) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Return the logarithms of :meth:`probabilities` as float64 on the CPU.

        They are finite also where a probability is rounded to 0.
        """
        ops = [[a.cpu().double().log_softmax(0) for a in block] for block in self._alpha_lists()]
        return ops, [beta.detach().cpu().double().log_softmax(0) for beta in self.betas]

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha and beta, the upper-level variables of Eq. 3."""
        return [*self.alphas.parameters(), *self.betas.parameters()]

    def sample_paths(
        self,
        generator: torch.Generator,
        *,
        uniform: bool,
        number: int = 1,
        without: Paths | None = None,
    ) -> Paths:
        """Draw candidates per position: uniformly, or by softmax of alpha.

        Args:
            generator: A generator of the CPU, so that every device and process draws the same.
            uniform: Whether all candidates are equally likely.
            number: How many different candidates per position; all where there are fewer.
            without: Earlier paths whose single candidates are not drawn again, where a position
                has others.
        """

        def draw(alpha: Tensor, before: Sampled | None) -> Sampled:
            weights = torch.ones(len(alpha)) if uniform else alpha.detach().softmax(0).cpu()
            # Softmax may round to 0, which multinomial cannot draw `number` different ones from.
            weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)
            if isinstance(before, int) and len(alpha) > 1:
                weights[before] = 0
            if number == 1:
                return int(torch.multinomial(weights, 1, generator=generator))
            drawn = torch.multinomial(weights, min(number, len(alpha)), generator=generator)
            return tuple(sorted(drawn.tolist()))

        return [
            [
                draw(alpha, without[block][position] if without else None)
                for position, alpha in enumerate(alphas)
            ]
            for block, alphas in enumerate(self._alpha_lists())
        ]

    def _alpha_lists(self) -> list[list[Tensor]]:
        return [list(block.parameters()) for block in self.alphas]

    @torch.no_grad()
    def argmax(self) -> Architecture:
        """Return the network of the highest alphas and betas (paper section III-B)."""
        best_ops = [[int(alpha.argmax()) for alpha in block] for block in self._alpha_lists()]
        best_widths = [int(beta.argmax()) for beta in self.betas]
        return Choices.of(best_ops, best_widths).architecture(self.space)
