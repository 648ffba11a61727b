"""At which rate do images come? (`adapt bench --every`)"""

import re

from adapt.errors import AdaptError

_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s|/s)\s*")
LONGEST_MS = 60_000.0


def call_interval_ms(text: str, batch: int) -> float:
    """Return the time from a call to the next.

    Args:
        text: ``100ms`` or ``0.1s`` from call to call, or ``10/s``, images per second.
        batch: Images of a call.

    Raises:
        AdaptError: If the text has another form, or the time is 0 or longer than a minute.
    """
    match = _FORM.fullmatch(text)
    amount = float(match[1]) if match else 0.0
    if not match or not amount:
        raise AdaptError(f"--every must be like 100ms, or 10/s (images per second), got {text!r}")
    every_ms = {"ms": amount, "s": 1000 * amount, "/s": 1000 * batch / amount}[match[2]]
    if every_ms > LONGEST_MS:
        raise AdaptError(f"--every {text} is a call every {every_ms / 1000:g} s; at most 60 s")
    return every_ms
