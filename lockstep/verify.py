"""The check of a model where it is used: file, golden sample and certificate agree, and the sample is replayed here."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from lockstep.certificate import Certificate
from lockstep.classifier import Classifier
from lockstep.errors import FileMissingError, LockstepError
from lockstep.golden import Replay
from lockstep.predict import MODEL
from lockstep.proof import Proof


def main(arguments: list[str] | None = None) -> int:
    """0: proven. 1: not proven. 2: a file is missing or cannot be read, or the arguments are wrong."""
    given = parser().parse_args(arguments)
    beside = Proof.next_to(given.model)
    proof = Proof(given.golden or beside.golden, given.certificate or beside.certificate)
    try:
        classifier = Classifier(given.model, proven=proof)
    except LockstepError as problem:
        if given.json:
            print(json.dumps({"proven": False, "reason": str(problem)}))
        print(problem, file=sys.stderr)
        return 2 if isinstance(problem, FileMissingError) else 1
    assert classifier.certificate
    assert classifier.replay
    if given.json:
        print(json.dumps(as_json(classifier.certificate, classifier.replay)))
    else:
        print(f"{given.model} is proven", *as_lines(classifier.certificate, classifier.replay), sep="\n  ")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lockstep.verify", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help=f"the ONNX file; {MODEL} unless given")
    parser.add_argument("--golden", type=Path, help="its golden sample; golden.json beside it unless given")
    parser.add_argument(
        "--certificate",
        type=Path,
        help="certificate of the model and the golden sample; certificate.json beside the model unless given",
    )
    parser.add_argument("--json", action="store_true", help="an object for programs")
    return parser


def as_json(certificate: Certificate, replay: Replay) -> dict[str, Any]:
    return {
        "proven": True,
        "certificate": certificate.content,
        "replay": {**replay._asdict(), "onnxruntime": onnxruntime.__version__},
    }


def as_lines(certificate: Certificate, replay: Replay) -> list[str]:
    hashes, quality, parity = certificate.hashes, certificate.quality, certificate.parity
    return [
        f"model        {hashes.model_sha256}",
        f"weights      {hashes.weights_sha256}",
        f"golden       {hashes.golden_sha256}",
        f"certificate  {hashes.sha256}",
        f"accuracy     {quality.accuracy:.4f} ({quality.accuracy_low:.4f} to {quality.accuracy_high:.4f}), at least "
        f"{quality.min_accuracy:g} was asked for, on {quality.images} test images of {certificate.dataset.name}",
        f"parity       with the trained network within {parity.atol:g} in {parity.configurations} configurations, on "
        f"{parity.images} test images; no other label but where two logits are within {parity.margin:g}",
        f"replay       here within {replay.difference:.2g} of {replay.images} golden images, {replay.tolerance:g} is "
        f"allowed; ONNX Runtime {onnxruntime.__version__}",
    ]


if __name__ == "__main__":
    sys.exit(main())
