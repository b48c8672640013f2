"""A line on the terminal that says how many images are done, how many there are, and how long the rest will take."""

import sys
import time

CLEAR = "\r\x1b[K"
INTERVAL = 0.2  # seconds between two updates


class Progress:
    """Does nothing unless `total` is given."""

    def __init__(self, total: int | None) -> None:
        self.total, self.done = total, 0
        self.started = self.updated = time.perf_counter()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if not self.total or now - self.updated < INTERVAL:
            return
        self.updated = now
        rate = self.done / (now - self.started)
        left = max(0, round((self.total - self.done) / rate))
        bar = ("#" * (20 * self.done // self.total)).ljust(20, ".")
        self._show(f"{CLEAR}[{bar}] {self.done:,} of {self.total:,} images, {rate:,.0f}/s, {left} s left")

    def log(self, message: str) -> None:
        """Print a line on the standard error, above the bar."""
        print(f"{CLEAR if self.total else ''}{message}", file=sys.stderr)

    def close(self) -> None:
        if self.total:
            self._show(CLEAR)

    @staticmethod
    def _show(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
