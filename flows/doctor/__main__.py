"""Prints what is right and wrong with this project, and the command that mends it.

Depends on the standard library alone, because it is for the times when packages are missing: so argparse, and not
cyclopts as in the other commands. Old Pythons can read this file.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("doctor: Python 3.11 or later is needed: make PYTHON=/path/to/it doctor")

import argparse
import json
import os
import time
from pathlib import Path

from flows.doctor.findings import Finding, Project
from flows.doctor.run_checks import CHECKS, run_checks

ROOT = Path(__file__).parent.parent.parent
LABELS = {"ok": "ok", "warning": "warning", "error": "WRONG", "skipped": "skipped"}
COLOURS = {"ok": "32", "warning": "33", "error": "1;31", "skipped": "2"}  # of ANSI terminals
EPILOG = """exit status: 0 nothing is wrong (warnings do not count), 1 something is, 2 an argument is not valid

examples:
  python -m flows.doctor                  everything, in a few seconds
  python -m flows.doctor params data-set  these checks only"""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    checks = [check for check in CHECKS if not options.checks or check.name in options.checks]
    project = Project(ROOT, options.min_free, options.port)
    start, group, found = time.monotonic(), "", list[tuple[str, Finding]]()
    for check, findings in run_checks(checks, project):
        found += [(check.name, finding) for finding in findings]
        if options.json:
            continue
        if check.group != group:
            print(f"{check.group}" if not group else f"\n{check.group}")
            group = check.group
        for finding in findings:
            print(format_finding(check.name, finding), flush=True)
    if options.json:
        print(json.dumps([{"check": name, **vars(finding)} for name, finding in found], indent=2))
    else:
        print(f"\n{summarize([finding for _, finding in found])} ({time.monotonic() - start:.1f} s)")
    return int(any(finding.status == "error" for _, finding in found))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.doctor",
        description="Check what a run needs, and name the command that mends what is wrong. It changes nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"all if none is named: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="print a list of {check, status, message, fix}")
    parser.add_argument(
        "--min-free", type=gigabytes, default=1.0, metavar="GB", help="of each disk; default: %(default)s"
    )
    parser.add_argument("--port", type=int, default=8000, help="of make serve; default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.checks if name not in names]:
        parser.error(f"unknown check: {', '.join(unknown)}; known are {', '.join(names)}")
    if not 0 < options.port < 65536:
        parser.error(f"--port: not a port: {options.port}")
    return options


def gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of gigabytes")
    return number


def format_finding(name: str, finding: Finding) -> str:
    label = f"{LABELS[finding.status]:<8}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        label = f"\033[{COLOURS[finding.status]}m{label}\033[0m"
    line = f"  {label}{name:<17} {' '.join(finding.message.split())}"
    return f"{line}\n{'':27} -> {finding.fix}" if finding.fix else line


def summarize(findings: list[Finding]) -> str:
    counts = {status: sum(finding.status == status for finding in findings) for status in LABELS}
    if not counts["error"] and not counts["warning"]:
        text = "Nothing is wrong"
    else:
        text = f"{counts['error']} wrong, {counts['warning']} warning{'s' if counts['warning'] != 1 else ''}"
    return text + (f", {counts['skipped']} skipped" if counts["skipped"] else "")


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    os._exit(status)  # a check that did not end would hold the process
