"""The certificate of a model: what was proven, of which files, by their SHA-256. Who consumes a model asks for it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.problem import Problem

FORMAT = 1
QUALITY = ("accuracy", "accuracy_low", "accuracy_high", "min_accuracy", "images")


@dataclass(frozen=True)
class Evidence:
    """The files that a proof is about, with their hashes from before it began."""

    model: Path
    weights: Path
    golden: Path
    splits: Path

    def hashes(self) -> dict[str, str]:
        return {
            "model_sha256": sha256([self.model]),
            "weights_sha256": sha256([self.weights]),
            "golden_sha256": sha256([self.golden]),
            "splits_sha256": sha256(sorted(self.splits.iterdir())),
        }


def sha256(files: Sequence[Path]) -> str:
    """Of one file's content; of several, of their names and hashes, as `sha256sum * | sha256sum` has it."""
    sums = []
    for path in files:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1:
        return sums[0]
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in zip(files, sums, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_quality(report: Path, accuracy: float) -> dict[str, Any]:
    """What evaluate's report says, if its gate passed and it is of the network that has this accuracy."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        quality = {name: content[name] for name in QUALITY}
        if not all(isinstance(value, int | float) for value in quality.values()):
            raise ValueError("a value that is not a number")
    except FileNotFoundError:
        raise Problem(f"{report}: missing; run `dvc repro evaluate`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{report}: not a report of evaluate ({error}); run `dvc repro -f evaluate`") from None
    if quality["accuracy"] < quality["min_accuracy"]:
        raise Problem(
            f"no certificate: accuracy {quality['accuracy']:.4f} is below evaluate.min_accuracy "
            f"{quality['min_accuracy']}, says {report}"
        )
    if abs(quality["accuracy"] - accuracy) > 0.001:  # an evaluation on a GPU may decide a few images otherwise
        raise Problem(
            f"{report}: is of other weights: accuracy {quality['accuracy']:.4f}, where these have {accuracy:.4f}; "
            "run `dvc repro evaluate`"
        )
    return quality


def make_certificate(
    hashes: dict[str, str],
    dataset: str,
    origin: str,
    quality: dict[str, Any],
    parity: dict[str, Any],
    environment: dict[str, Any],
) -> dict[str, Any]:
    libraries = {**environment["libraries"], "onnxruntime": importlib.metadata.version("onnxruntime")}
    content = {
        "format": FORMAT,
        **{name: hashes[name] for name in ("model_sha256", "weights_sha256", "golden_sha256")},
        "dataset": {"name": dataset, "origin": origin, "splits_sha256": hashes["splits_sha256"]},
        "quality": quality,
        "parity": parity,
        "environment": {**environment, "libraries": libraries},
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}  # of all else: a changed byte shows
