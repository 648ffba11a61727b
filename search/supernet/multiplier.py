"""How much is cost worth, so that a search ends at its target?"""

from typing import Any

from torch import Tensor

from search.recipe.optimisation import SearchRecipe

RELIEF = 20


class Multiplier:
    """lambda of Eq. 4: fixed, or learned by dual ascent.

    With a target T the penalty is lambda * log10(C / T), C the expected cost. What must meet the
    target is the network that the search will stand for, so lambda follows the cost M of the arg
    max: after every architecture step it is multiplied by (M / T) ** rate, which is gradient ascent
    on its logarithm. It stays positive, moves by the same factor whatever the unit of cost, and is
    kept within ``target_range``. While M is below the target the penalty fades by (M / T) ** 20:
    lambda rises fast while a search starts far above its target, and would push it far below before
    it has fallen again.

    Args:
        how: lambda, its form, rate and range.
        target: T, in the unit of the costs; None keeps lambda fixed.
    """

    def __init__(self, how: SearchRecipe, target: float | None) -> None:
        self.how, self.target = how, target
        self.value = how.cost_weight
        if target is not None:
            self.value = self._clipped(how.cost_weight)

    def in_force(self, reached: float) -> float:
        """Return lambda as it weighs while the arg max network costs ``reached``."""
        if self.target is None:
            return self.value
        return self.value * min(1.0, reached / self.target) ** RELIEF

    def penalty(self, cost: Tensor, reached: float) -> Tensor:
        """Return the cost term of Eq. 4: lambda * C, lambda * log10(C) (FNA), or that of a target.

        Args:
            cost: C, in G MAdds or milliseconds.
            reached: M.
        """
        if self.target is not None:
            return self.in_force(reached) * (cost / self.target).log10()
        return self.value * (cost if self.how.penalty == "linear" else cost.log10())

    def update(self, reached: float) -> None:
        """Raise lambda where the arg max costs more than the target, lower it where less."""
        if self.target is not None:
            factor = (reached / self.target) ** self.how.target_rate
            self.value = self._clipped(self.value * factor)

    def _clipped(self, value: float) -> float:
        least, largest = self.how.target_range
        return min(max(value, least), largest)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        self.value = state["value"]
