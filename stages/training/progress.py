"""Says how far a training is: a bar on a terminal; in a log a line now and then, with the time that remains."""

import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from stages.core.command import echo

LOG_INTERVAL = 30.0  # seconds between two lines


def report_progress(steps: range) -> Iterator[int]:
    """Yield the steps; the first ones may have been done before, by a training that this one resumes."""
    if sys.stderr.isatty():
        yield from tqdm(steps, initial=steps.start, total=steps.stop, unit="step")
        return
    started = last_line = time.monotonic()
    for step in steps:
        yield step
        now, done = time.monotonic(), step + 1
        if now - last_line >= LOG_INTERVAL and done < steps.stop:
            remaining = (now - started) / (done - steps.start) * (steps.stop - done)
            echo(f"step {done} of {steps.stop}: {format_duration(remaining)} left")
            last_line = now


def format_duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"about {round(seconds)} s"
    return f"about {minutes} min" if minutes < 90 else f"about {hours} h"
