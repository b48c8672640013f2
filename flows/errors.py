"""The error that a person can correct: its message is one line that names the key, file or stage, and what to do."""


class FlowError(Exception):
    """Ends a command or a run with its message alone."""
