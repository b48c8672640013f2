"""Command-line arguments that several subcommands share."""

import argparse
from pathlib import Path

from lockstep.classifier import default_model
from lockstep.proof import ProofFiles

MODEL_HELP = "the ONNX file; default: data/model/model.onnx if there is one, else the published model"


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def add_proof_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--golden", type=Path, help="its golden sample; default: golden.json beside the model")
    parser.add_argument("--certificate", type=Path, help="its certificate; default: certificate.json beside the model")
    parser.add_argument("--key", type=Path, help="a public key, PEM: require a signature, model.sig, of its owner")


def proof_files_from_arguments(args: argparse.Namespace) -> ProofFiles:
    default = ProofFiles.beside_model(args.model or default_model())
    return ProofFiles(args.golden or default.golden, args.certificate or default.certificate, args.key)
