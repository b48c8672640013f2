"""The certificate of a model: the SHA-256 of its files, its quality and its parity. Consumers require one."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnxruntime

from stages.core.errors import GateError, StageError
from stages.core.files import file_sha256
from stages.network.weights import short_hash

FORMAT_VERSION = 1
QUALITY_KEYS = ("accuracy", "accuracy_low", "accuracy_high", "min_accuracy", "macro_f1", "min_macro_f1", "images")


def hash_files(paths: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of each file or folder, by its key in the certificate."""
    return {f"{name}_sha256": hash_folder(path) if path.is_dir() else file_sha256(path) for name, path in paths.items()}


def hash_folder(folder: Path) -> str:
    """Hash the names and contents of its files, as `LC_ALL=C; sha256sum * | sha256sum` in the folder does."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_quality(path: Path, weights: Path) -> dict[str, Any]:
    """Read the numbers to certify from evaluate's report of these weights.

    They must have passed evaluate's gate, unless that only records (evaluate.gate): then see `describe_misses`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        quality, weights_hash = {key: report[key] for key in QUALITY_KEYS}, report["weights"]
        if not all(isinstance(value, int | float) for value in quality.values()):
            raise ValueError("a value that is not a number")
        is_enforced = report["gate"] != "record"
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro evaluate`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{path}: not a report of evaluate ({error}); run `dvc repro -f evaluate`") from None
    if weights_hash != short_hash(weights):
        raise StageError(f"{path}: not of the weights in {weights}; run `dvc repro evaluate`")
    if (misses := describe_misses(quality)) and is_enforced:
        raise GateError(
            f"{path}: {misses}, so no certificate is written; train a better model, or lower the floor in the section "
            "evaluate of the params"
        )
    return quality


def describe_misses(quality: dict[str, Any]) -> str:
    """Which floors of evaluate's gate were missed; empty if none."""
    return ", ".join(
        f"{name.replace('_f1', ' F1')} {quality[name]:.4f} is below the required {quality[f'min_{name}']:.4f}"
        for name in ("accuracy", "macro_f1")
        if quality[name] < quality[f"min_{name}"]
    )


def refuse_certificate(reason: str) -> dict[str, Any]:
    """What stands in the place of a certificate, which DVC expects of an experiment; consumers refuse it."""
    return {"format": FORMAT_VERSION, "refused": reason}


def make_certificate(
    hashes: dict[str, str],
    dataset: dict[str, str],
    quality: dict[str, Any],
    parity: dict[str, Any],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """The content of the certificate. Its last key is a hash of the others, so that consumers detect changes."""
    content = {
        "format": FORMAT_VERSION,
        **{name: hashes[name] for name in ("model_sha256", "weights_sha256", "golden_sha256")},
        "dataset": {**dataset, "splits_sha256": hashes["splits_sha256"]},
        "quality": quality,
        "parity": parity,
        "environment": {**environment, "onnxruntime": onnxruntime.__version__},
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
