"""Which error tells a user what to fix?"""


class AdaptError(ValueError):
    """A mistake the user can correct.

    The message is one sentence with the offending value, the file and the fix; the command line
    prints it without a traceback and exits with code 1.
    """
