"""What a fuzz target is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any


def nothing_wrong() -> str:
    return ""


@dataclass
class Target:
    valid: Sequence[Any]  # inputs that must end in a result
    make: Callable[[Random], Any]  # a damaged input
    use: Callable[[Any], object]
    errors: tuple[type[Exception], ...]  # the project's own, which it may end in
    finish: Callable[[], str] = field(default=nothing_wrong)  # what is wrong after all inputs; empty if nothing is
