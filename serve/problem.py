"""What a person is told in one line: what is wrong, and what to do."""


class Problem(Exception):
    """Wrong from outside: a file, a picture, a request."""


class BadPicture(Problem):
    """Not a picture, or one that the network cannot be shown."""
