"""Which exception is a mistake that the user can correct?"""

from typing import Any

# For dataclasses that are read from users' files: a misspelt field is an error, not a default, and
# NaN, which no comparison refuses, is no number.
FORBID_UNKNOWN: Any = {"extra": "forbid", "allow_inf_nan": False}


class AdaptError(ValueError):
    """A mistake that the user can correct.

    The message is one sentence with the offending value, the file and the fix; the command line
    prints it without a traceback and exits with code 1.
    """
