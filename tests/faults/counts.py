"""Collects the counts of the tests of faults in the file that FAULTS_RESULTS names, and prints them as a table."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def fraction() -> float:
    """How much of the whole program `make test-faults` runs: FAULTS, 1 by default."""
    return float(os.environ.get("FAULTS", "1"))


def record(kind: str, **entry: Any) -> None:
    """Append the entry, as a line of JSON."""
    if path := os.environ.get("FAULTS_RESULTS"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"class": kind, **entry}) + "\n")


def format_table(entries: list[dict[str, Any]]) -> str:
    """In Markdown: a row for each class of faults, and for each stage or target in it."""
    rows = ["| fault | where | number | outcomes |", "|---|---|---:|---|"]
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    for entry in entries:
        outcomes.setdefault((entry["class"], entry["target"]), Counter()).update(entry["outcomes"])
    for (kind, target), counts in outcomes.items():
        ends = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        rows.append(f"| {kind} | {target} | {counts.total():,} | {ends} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(format_table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
