"""Errors that a person can act on: a stage ends with one line that says what is wrong, without a traceback."""


class StageError(Exception):
    """The message is all that is printed: it names the key, file or index, and what to do."""

    status = 1  # exit status of the stage


class GateError(StageError):
    """The model is not good enough. The report is written, and flows/experiments.py knows the status."""

    status = 3


class UnavailableError(StageError):
    """The network or a mirror failed: a later attempt may succeed."""

    status = 69  # EX_UNAVAILABLE of sysexits.h
