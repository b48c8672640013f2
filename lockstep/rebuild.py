"""Train a revision of the pipeline again from the raw data, and sign a statement if the model has the same bytes."""

import argparse
import sys
from pathlib import Path

from lockstep.clone import start_program
from lockstep.errors import LockstepError

EXAMPLE = """example, in a clone of the project, after `make setup`: lockstep rebuild --private-key private.pem
exit status: 0 the same bytes, 1 not, or the run failed, 2 this is not a clone"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("revision", nargs="?", default="HEAD", help="commit, branch or tag; default: %(default)s")
    parser.add_argument(
        "--private-key", type=Path, required=True, help="that signs: elliptic curve, Ed25519 or RSA, as PEM"
    )
    parser.add_argument(
        "--statements", type=Path, help="the file to append to; default: model.intoto.jsonl beside the model"
    )


def run(args: argparse.Namespace) -> int:
    statements = ["--statements", str(args.statements)] if args.statements else []
    try:
        program = start_program("flows.rebuild", args.revision, "--private-key", str(args.private_key), *statements)
    except LockstepError as error:
        print(f"lockstep rebuild: {error}", file=sys.stderr)
        return 2
    return program.wait()
