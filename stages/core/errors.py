"""What a person did wrong or must decide, as one line that names it: a stage ends with it, and without a traceback."""


class StageError(Exception):
    """The message is all that the person sees: it names the key, file or index, and what to do."""

    status = 1  # of the command that ends with it


class UnavailableError(StageError):
    """The network or a mirror is at fault, not the person: another try may succeed."""

    status = 69  # EX_UNAVAILABLE of sysexits.h
