"""Verify a model: its file, golden sample and certificate agree, and it reproduces the golden sample here."""

import argparse
import json
import sys
from pathlib import Path

import onnxruntime

from lockstep.arguments import MODEL_HELP, add_proof_arguments, proof_files_from_arguments
from lockstep.certificate import Certificate
from lockstep.classifier import Classifier
from lockstep.errors import FileMissingError, LockstepError
from lockstep.golden import GoldenReplay

EXAMPLE = """example: lockstep verify data/model/model.onnx
exit status: 0 proven, 1 not proven, 2 a file is missing or cannot be read, or an argument is wrong"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", type=Path, help=MODEL_HELP)
    add_proof_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    try:
        proof_files = proof_files_from_arguments(args)
    except LockstepError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        classifier = Classifier(args.model, verify=proof_files)
    except LockstepError as error:
        if args.json:
            print(json.dumps({"proven": False, "reason": str(error)}))
        print(error, file=sys.stderr)
        return 2 if isinstance(error, FileMissingError) else 1
    certificate, replay = classifier.certificate, classifier.replay
    assert certificate
    assert replay
    if args.json:
        replay_json = {**replay._asdict(), "onnxruntime": onnxruntime.__version__}
        print(json.dumps({"proven": True, "certificate": certificate.content, "replay": replay_json}))
    else:
        signed = f", signed by the owner of {args.key}" if args.key else ""
        rebuilt = f", rebuilt by {args.rebuilt} or more of the keys" if args.rebuilt else ""
        print(f"{classifier.path} is proven{signed}{rebuilt}", *format_lines(certificate, replay), sep="\n  ")
    return 0


def format_lines(certificate: Certificate, replay: GoldenReplay) -> list[str]:
    hashes, quality, parity = certificate.hashes, certificate.quality, certificate.parity
    return [
        f"model        {hashes.model_sha256}",
        f"weights      {hashes.weights_sha256}",
        f"golden       {hashes.golden_sha256}",
        f"certificate  {hashes.sha256}",
        f"accuracy     {quality.accuracy:.4f} (95 % interval {quality.accuracy_low:.4f} to {quality.accuracy_high:.4f})"
        f" on {quality.images} test images of {certificate.dataset.name}, required: {quality.min_accuracy:g}",
        *(
            [f"macro_f1     {quality.macro_f1:.4f}, required: {quality.min_macro_f1:g}"]
            if None not in (quality.macro_f1, quality.min_macro_f1)
            else []
        ),
        f"parity       equal to the trained network within {parity.atol:g} in {parity.configurations} configurations, "
        f"each on up to {parity.images} test images; "
        f"labels equal unless two logits differ by less than {parity.margin:g}",
        f"replay       {replay.images} golden images reproduced here within {replay.max_abs_error:.2g} (allowed: "
        f"{replay.tolerance:g}) by ONNX Runtime {onnxruntime.__version__}",
    ]
