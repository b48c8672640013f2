"""Command-line arguments that several subcommands share."""

import argparse
from pathlib import Path

from lockstep.classifier import default_model
from lockstep.errors import LockstepError
from lockstep.proof import ProofFiles

MODEL_HELP = "the ONNX file; default: data/model/model.onnx if there is one, else the published model"


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {2**31 - 1:,}")
    return int(text)


def add_proof_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--golden", type=Path, help="its golden sample; default: golden.json beside the model")
    parser.add_argument("--certificate", type=Path, help="its certificate; default: certificate.json beside the model")
    parser.add_argument("--key", type=Path, help="a public key, PEM: require a signature, model.sig, of its owner")
    parser.add_argument(
        "--rebuilt",
        type=positive,
        metavar="N",
        default=0,
        help="require signed statements of N of the rebuilder keys that a rebuild gave these bytes",
    )
    parser.add_argument(
        "--rebuilder-key",
        type=Path,
        action="append",
        default=[],
        help="the public key, PEM, of one who is trusted to rebuild; may be given several times",
    )


def proof_files_or_none(args: argparse.Namespace) -> ProofFiles | None:
    """None with --no-verify."""
    if args.no_verify and (args.key or args.rebuilt or args.rebuilder_key):
        raise LockstepError("--no-verify contradicts --key and --rebuilt")
    return None if args.no_verify else proof_files_from_arguments(args)


def proof_files_from_arguments(args: argparse.Namespace) -> ProofFiles:
    default = ProofFiles.beside_model(args.model or default_model())
    golden, certificate = args.golden or default.golden, args.certificate or default.certificate
    return ProofFiles(golden, certificate, args.key, args.rebuilt, args.rebuilder_key)
