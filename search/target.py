"""What may a detector cost?"""

import re
from dataclasses import dataclass
from typing import Literal

from adapt.cost_table import CostTable
from adapt.errors import AdaptError

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

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> "Budget":
        """Read ``4.0ms``, ``850us``, ``134.9G`` or ``900M``.

        Args:
            text: What the user wrote.
            option: Where, for the error.

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

    def in_sums(self, table: CostTable | None) -> float:
        """Return the amount that sums of table rows must not exceed.

        Milliseconds are of the latency that the table's certificate predicts from such a sum.
        """
        certificate = table.certificate if table is not None and self.unit == "ms" else None
        if certificate is None:
            return self.amount
        return float((self.amount - certificate["offset_ms"]) / certificate["scale"])
