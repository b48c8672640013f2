"""Gives one of the fuzz targets damaged inputs, and prints as JSON how each ended; run by test_fuzz.py, or by hand.

PYTHONPATH=.:tests:tests/faults python tests/faults/fuzz.py idx --inputs 1000 --seed 1
"""

import argparse
import base64
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import targets_of_consumers
import targets_of_flows
import targets_of_stages
from fuzz_target import Target

MODULES = (targets_of_stages, targets_of_flows, targets_of_consumers)
SECONDS = 10.0  # for one input
MAX_GROWTH = 1 << 30  # bytes of memory that all inputs together may add
MAX_MESSAGE = 4000  # characters of an error's line
MAX_FAILURES = 20  # that are printed


class HangError(BaseException):
    """Not an Exception, so that no handler of broad errors takes it for one."""


def stop(_: int, __: FrameType | None) -> None:
    raise HangError


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def use(target: Target, data: Any) -> tuple[str, str]:
    """How the input ended: "result", an error of the project, or "failure" with what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.use(data)
    except target.errors as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lines = str(error).splitlines()
        if len(lines) != 1 or len(lines[0]) > MAX_MESSAGE:
            return "failure", f"{len(lines)} lines, {len(str(error))} characters: {str(error)[:300]!r}"
        return type(error).__name__, ""
    except HangError:
        return "failure", f"not done after {SECONDS:g} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "failure", f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "result", ""


def find_target(name: str) -> Callable[[Path], Target]:
    (function,) = (vars(module)[name] for module in MODULES if name in vars(module))
    return function


def fuzz(name: str, inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    target = find_target(name)(folder)
    for data in target.valid:  # loads what is loaded lazily, and shows that the target takes valid inputs
        target.use(data)
    before, started = peak_memory(), time.monotonic()
    outcomes: Counter[str] = Counter()
    failures: dict[str, str] = {}
    for index in range(inputs):
        data = target.make(Random(f"{seed}/{name}/{index}"))
        outcome, reason = use(target, data)
        outcomes[outcome] += 1
        if reason and len(failures) < MAX_FAILURES and reason not in failures:
            raw = data if isinstance(data, bytes) else repr(data).encode("utf-8", "surrogatepass")
            failures[reason] = f"input {index}: {base64.b64encode(raw[:3000]).decode()}"
    if (growth := peak_memory() - before) > MAX_GROWTH:
        failures[f"memory grew by {growth >> 20} MiB"] = ""
    if problem := target.finish():
        failures[problem] = ""
    return {
        "target": name,
        "seed": seed,
        "inputs": inputs,
        "outcomes": dict(sorted(outcomes.items())),
        "failures": failures,
        "memory_growth_mib": growth >> 20,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="a function of one of the modules targets_of_…")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))  # an absurd allocation fails at once
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(fuzz(args.target, args.inputs, args.seed, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
