"""What a person did wrong or must decide, as one line that names it: a command or a run ends with it."""


class FlowError(Exception):
    """The message is all that the person sees: it names the key, file or stage, and what to do."""
