"""Errors whose message is one line that says what is wrong and what to do."""


class LockstepError(Exception):
    """A file or an image is wrong, or this machine computes other outputs than the golden sample has."""


class ImageError(LockstepError):
    """Not a readable image, or one that shows nothing to classify."""


class FileMissingError(LockstepError):
    """A file of the model is missing or cannot be read."""


class HashMismatchError(LockstepError):
    """The certificate is of other files: a pipeline run may be replacing them, or has failed."""
