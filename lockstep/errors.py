"""What a person is told in one line: what is wrong, and what to do."""


class LockstepError(Exception):
    """Wrong from outside: a file, a picture, a request."""


class ImageError(LockstepError):
    """Not a picture, or one that the network cannot be shown."""


class FileMissingError(LockstepError):
    """Not there, or not to be read."""


class HashMismatchError(LockstepError):
    """A golden sample or a certificate is of another model: a run may be replacing the files, or have failed."""
