"""The certificate of a model: what was proven, of which files, by their SHA-256. Who consumes a model asks for it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from stages.core.errors import StageError
from stages.network.weights import file_sha256, short_hash

FORMAT = 1
QUALITY = ("accuracy", "accuracy_low", "accuracy_high", "min_accuracy", "images")


@dataclass(frozen=True)
class CertifiedFiles:
    """The files that a certificate is about."""

    model: Path
    weights: Path
    golden: Path
    splits: Path

    def hashes(self) -> dict[str, str]:
        return {
            "model_sha256": file_sha256(self.model),
            "weights_sha256": file_sha256(self.weights),
            "golden_sha256": file_sha256(self.golden),
            "splits_sha256": folder_sha256(self.splits),
        }


def folder_sha256(folder: Path) -> str:
    """Of the names and hashes of its files, as `sha256sum * | sha256sum` prints it in the folder."""
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(folder.glob("*")))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_quality(report: Path, weights: Path) -> dict[str, Any]:
    """What evaluate's report says of these weights, if its gate passed."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        quality, named = {name: content[name] for name in QUALITY}, content["weights"]
        if not all(isinstance(value, int | float) for value in quality.values()):
            raise ValueError("a value that is not a number")
    except FileNotFoundError:
        raise StageError(f"{report}: missing; run `dvc repro evaluate`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{report}: not a report of evaluate ({error}); run `dvc repro -f evaluate`") from None
    if named != short_hash(weights):
        raise StageError(f"{report}: is of other weights than {weights}; run `dvc repro evaluate`")
    if quality["accuracy"] < quality["min_accuracy"]:
        raise StageError(
            f"no certificate: accuracy {quality['accuracy']:.4f} is below evaluate.min_accuracy "
            f"{quality['min_accuracy']}, says {report}"
        )
    return quality


def make_certificate(
    hashes: dict[str, str],
    dataset: str,
    origin: str,
    quality: dict[str, Any],
    parity: dict[str, Any],
    trained_on: dict[str, Any],
) -> dict[str, Any]:
    """What validate_parity writes; the last key is a hash of all others, so that a changed byte is found."""
    content = {
        "format": FORMAT,
        **{name: hashes[name] for name in ("model_sha256", "weights_sha256", "golden_sha256")},
        "dataset": {"name": dataset, "origin": origin, "splits_sha256": hashes["splits_sha256"]},
        "quality": quality,
        "parity": parity,
        "environment": {**trained_on, "onnxruntime": onnxruntime.__version__},
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
