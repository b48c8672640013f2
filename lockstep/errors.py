"""Errors whose message is one line that says what is wrong and what to do."""


class LockstepError(Exception):
    """A file, an image or an argument is wrong."""


class ImageError(LockstepError):
    """Not a readable image, or one that shows nothing to classify."""


class FileMissingError(LockstepError):
    """A file of the model is missing or cannot be read."""


class HashMismatchError(LockstepError):
    """The certificate is of other files: a pipeline run may be replacing them, or has failed."""
