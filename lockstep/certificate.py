"""Reads a certificate: what was proven about a model, and of which files, by their SHA-256."""

import hashlib
import json
import math
import re
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from lockstep.errors import LockstepError
from lockstep.metadata import ModelMetadata

FORMAT = 1
REPLACE_FILES = "copy all files of the model again, or run `dvc repro` in a clone of the pipeline to make them"


@dataclass(frozen=True)
class Dataset:
    name: str
    origin: str
    splits_sha256: str


@dataclass(frozen=True)
class Quality:
    """On the test split, which has `images` images; low and high bound the 95 % confidence interval."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    min_accuracy: float
    images: int
    macro_f1: float | None = None  # of a certificate of 0.2.0 or older
    min_macro_f1: float | None = None

    def describe_misses(self) -> str:
        """Which floors of the pipeline's gate the model does not reach; empty if it reaches all."""
        floors = {"accuracy": (self.accuracy, self.min_accuracy), "macro F1": (self.macro_f1, self.min_macro_f1)}
        return ", ".join(
            f"{name} {value} is below the required {floor}"
            for name, (value, floor) in floors.items()
            if value is not None and floor is not None and value < floor
        )


@dataclass(frozen=True)
class Parity:
    """ONNX file and trained network agree within atol; labels agree unless two logits are within margin."""

    configurations: int
    images: int
    atol: float
    margin: float


@dataclass(frozen=True)
class Hashes:
    model_sha256: str
    weights_sha256: str
    golden_sha256: str
    sha256: str  # of the certificate's own content


@dataclass(frozen=True)
class Certificate:
    hashes: Hashes
    dataset: Dataset
    quality: Quality
    parity: Parity
    environment: dict[str, Any]
    content: dict[str, Any]  # the whole JSON object of the file


Section = TypeVar("Section", Hashes, Dataset, Quality, Parity)


def read_certificate(data: bytes, name: str) -> Certificate:
    """LockstepError unless the bytes are exactly what validate_parity writes for a model that passed its gates."""
    try:
        content = json.loads(data.decode())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.40}; this version knows {FORMAT}")
        if "refused" in content:
            raise LockstepError(
                f"{name}: certifies nothing: {' '.join(str(content['refused']).split()):.200}; train a better model"
            )
        hashes = read_section(Hashes, content)
        dataset = read_section(Dataset, content["dataset"])
        quality = read_section(Quality, content["quality"])
        parity = read_section(Parity, content["parity"])
        if not isinstance(content["environment"], dict):
            raise ValueError("its environment is not an object")
        # Other white space and repeated keys are changes too, and the hash of the content does not show them.
        unchanged = hash_content(content) == hashes.sha256 and data == serialize_certificate(content)
    except KeyError as error:
        raise LockstepError(f"{name}: not a certificate (it lacks {error}); {REPLACE_FILES}") from None
    except (ValueError, RecursionError) as error:
        raise LockstepError(f"{name}: not a certificate ({error}); {REPLACE_FILES}") from None
    if not unchanged:
        raise LockstepError(f"{name}: was changed after it was written; {REPLACE_FILES}")
    if misses := quality.describe_misses():
        raise LockstepError(
            f"{name}: {misses}; train a better model, or lower the floor in the section evaluate of params.yaml"
        )
    return Certificate(hashes, dataset, quality, parity, content["environment"], content)


def read_section(section: type[Section], content: Any) -> Section:
    """The section's fields of a JSON object; ValueError names the first one of a wrong type or value."""
    if not isinstance(content, dict):
        raise ValueError(f"its {section.__name__.lower()} is not an object")
    given = [field for field in fields(section) if field.default is MISSING or field.name in content]
    values = {field.name: content[field.name] for field in given}
    for field in given:
        name, value = field.name, values[field.name]
        kind = float if field.type == float | None else field.type
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"its {name} is {value!r:.40}, not of type {getattr(kind, '__name__', kind)}")
        if name.endswith("sha256") and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"its {name} is {value!r:.40}, not 64 hexadecimal digits")
        is_fraction = name.startswith(("accuracy", "macro_f1"))
        if kind is not str and not (0 <= value <= 1 if is_fraction else 0 <= value < math.inf):
            raise ValueError(f"its {name} is {value}")
    return section(**values)


def hash_content(content: dict[str, Any]) -> str:
    """SHA-256 of all keys but `sha256`, as canonical JSON."""
    hashed = {key: value for key, value in content.items() if key != "sha256"}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def serialize_certificate(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def check_metadata(certificate: Certificate, metadata: ModelMetadata, name: str) -> None:
    """LockstepError unless the metadata of the model agree with its certificate."""
    certified = {"weights_sha256": certificate.hashes.weights_sha256, "dataset": certificate.dataset.name}
    for key, expected in certified.items():
        actual = metadata.properties.get(key)
        if actual != expected:
            raise LockstepError(
                f"{name}: its metadata {key} is {actual!r:.80}, its certificate has {expected!r:.80}; {REPLACE_FILES}"
            )
