"""What may a detector cost at most? (a budget in milliseconds or multiply-adds)"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from adapt.errors import AdaptError

ROUNDING = 1e-12  # relative difference of sums that add the same costs in another order
Unit = Literal["ms", "madds"]
_UNITS: dict[str, tuple[Unit, float]] = {
    "ms": ("ms", 1.0),
    "us": ("ms", 1e-3),
    "M": ("madds", 1e6),
    "G": ("madds", 1e9),
}


@dataclass(frozen=True)
class Budget:
    """What a detector may cost at most.

    Attributes:
        unit: ``ms`` of latency or ``madds``.
        amount: Milliseconds or multiply-adds.
    """

    unit: Unit
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} ms" if self.unit == "ms" else f"{self.amount / 1e9:g} GMAdds"

    @property
    def typed(self) -> str:
        """The budget in the form that :meth:`parse` reads."""
        if self.unit == "ms":
            return f"{self.amount:.5g}ms"
        return f"{self.amount / 1e9:.5g}G" if self.amount >= 1e9 else f"{self.amount / 1e6:.5g}M"

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> "Budget":
        """Read ``4.0ms``, ``850us``, ``134.9G`` or ``900M``.

        Args:
            text: What the user wrote.
            option: The option or field it stands in, for the error.

        Raises:
            AdaptError: If the text has another form.
        """
        match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|us|M|G)\s*", text)
        try:
            amount = float(match[1]) if match else 0.0
        except ValueError:
            amount = 0.0
        if not match or amount <= 0:
            raise AdaptError(f"{option} must be like 4.0ms or 134.9G (multiply-adds), got {text!r}")
        unit, factor = _UNITS[match[2]]
        return cls(unit, amount * factor)

    def check_reachable(self, cheapest: float, option: str = "budget") -> None:
        """Check that at least one network costs no more.

        Args:
            cheapest: What the cheapest one costs, in this unit.
            option: What the user would raise, for the error.

        Raises:
            AdaptError: With the lowest budget that can be met.
        """
        if cheapest > self.amount * (1 + ROUNDING):
            # To four digits, rounded up: the budget that the error names can be met.
            digits = 3 - math.floor(math.log10(cheapest))
            lowest = Budget(self.unit, math.ceil(cheapest * 10.0**digits) / 10.0**digits)
            raise AdaptError(
                f"no network costs {self.typed} or less, the cheapest costs {lowest.typed}; "
                f"raise the {option}"
            )
