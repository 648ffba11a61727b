"""How large is lambda, the weight of the cost in Eq. 4? (fixed, or learned to meet a target)"""

from typing import Any

from torch import Tensor

from search.recipe.optimisation import SearchRecipe

FADING = 20  # exponent with which the penalty fades below the target


class Multiplier:
    """lambda of Eq. 4: fixed, or learned by dual ascent.

    The logarithm is that of the searchable part of the expected cost C, which is C without the
    part F that no choice changes, as in FNA. That of C itself would be nearly flat where heads
    dominate (F is 96 % of RetinaNet), and the same lambda would mean another pressure in every
    detector: the gradient is lambda * dC / ((C - F) ln 10).

    With a target T the penalty is lambda * log10((C - F) / (T - F)). The arg max network is what
    must meet the target, so lambda follows its cost M: after every architecture step lambda is
    multiplied by (M / T) ** rate, which is gradient ascent on its logarithm. Thus it stays positive
    and moves by the same factor whatever the unit of cost. It is kept within ``target_range``.

    While M is below the target, the penalty is also multiplied by (M / T) ** 20. A search starts
    far above its target, where lambda grows fast; without this fading, a lambda that is still too
    large would push the search far below the target.

    Args:
        settings: lambda, its form, rate and range.
        target: T, in the unit of the costs; None keeps lambda fixed.
        unchanging: F, in the unit of the costs.
    """

    def __init__(
        self, settings: SearchRecipe, target: float | None, unchanging: float = 0.0
    ) -> None:
        self.settings, self.target, self.unchanging = settings, target, unchanging
        self.value = settings.cost_weight
        if target is not None:
            self.value = self._clipped(settings.cost_weight)

    def in_force(self, argmax_cost: float) -> float:
        """Return the factor of the penalty: lambda, faded while the arg max network is cheap."""
        if self.target is None:
            return self.value
        return self.value * min(1.0, argmax_cost / self.target) ** FADING

    def penalty(self, cost: Tensor, argmax_cost: float) -> Tensor:
        """Return the cost term of Eq. 4: lambda * C, lambda * log10(C - F), or that of a target.

        Args:
            cost: C, in G MAdds or milliseconds.
            argmax_cost: M, in the same unit.
        """
        searchable = cost - self.unchanging
        if self.target is not None:
            ratio = searchable / (self.target - self.unchanging)
            return self.in_force(argmax_cost) * ratio.log10()
        return self.value * (cost if self.settings.penalty == "linear" else searchable.log10())

    def update(self, argmax_cost: float) -> None:
        """Raise lambda where the arg max costs more than the target, lower it where less."""
        if self.target is not None:
            factor = (argmax_cost / self.target) ** self.settings.target_rate
            self.value = self._clipped(self.value * factor)

    def _clipped(self, value: float) -> float:
        least, largest = self.settings.target_range
        return min(max(value, least), largest)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        self.value = state["value"]
