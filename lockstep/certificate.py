"""The certificate of a model: the bytes of certificate.json -> what was proven, of which files, by their SHA-256."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from lockstep.errors import LockstepError
from lockstep.metadata import ModelMetadata

FORMAT = 1
AGAIN = "copy it anew, or run `dvc repro -f validate_parity`"


@dataclass(frozen=True)
class Dataset:
    name: str
    origin: str
    splits_sha256: str


@dataclass(frozen=True)
class Quality:
    """On the test split, which has so many images; low and high bound the interval of 95 %."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    min_accuracy: float
    images: int


@dataclass(frozen=True)
class Parity:
    """ONNX file and trained network gave the same: within atol, and labels but where two logits are within margin."""

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
    content: dict[str, Any]  # all of it, as it stands in the file


Part = TypeVar("Part", Hashes, Dataset, Quality, Parity)


def read_certificate(data: bytes, name: str) -> Certificate:
    """A problem unless the bytes are, to the last one, what validate_parity writes of a model that passed."""
    try:
        content = json.loads(data.decode())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.40}, where {FORMAT} is known here")
        certificate = Certificate(
            read_part(Hashes, content),
            read_part(Dataset, content["dataset"]),
            read_part(Quality, content["quality"]),
            read_part(Parity, content["parity"]),
            content["environment"],
            content,
        )
        if not isinstance(certificate.environment, dict):
            raise ValueError("its environment is no object")
        whole = hash_content(content) == certificate.hashes.sha256 and data == serialize_certificate(content)
    except KeyError as error:
        raise LockstepError(f"{name}: not a certificate (it lacks {error}); {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise LockstepError(f"{name}: not a certificate ({error}); {AGAIN}") from None
    if not whole:
        raise LockstepError(f"{name}: was changed after it was written; {AGAIN}")
    quality = certificate.quality
    if quality.accuracy < quality.min_accuracy:
        raise LockstepError(
            f"{name}: accuracy {quality.accuracy} is below its floor of {quality.min_accuracy}; train a better model, "
            "or lower evaluate.min_accuracy"
        )
    return certificate


def read_part(kind: type[Part], content: Any) -> Part:
    if not isinstance(content, dict):
        raise ValueError(f"its {kind.__name__.lower()} is no object")
    for each in fields(kind):
        check_value(each.name, each.type, content[each.name])
    return kind(**{each.name: content[each.name] for each in fields(kind)})


def check_value(name: str, kind: Any, value: Any) -> None:
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:
        raise ValueError(f"its {name} is {value!r:.40}, no {'number' if kind is float else kind.__name__}")
    if name.endswith("sha256") and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"its {name} is {value!r:.40}, not 64 hexadecimal digits")
    if kind is not str and not 0 <= value < math.inf:
        raise ValueError(f"its {name} is {value}")


def hash_content(content: dict[str, Any]) -> str:
    """Of all but the hash itself, as canonical JSON."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def serialize_certificate(content: dict[str, Any]) -> bytes:
    """The bytes that validate_parity writes: they show changed white space and keys that come twice, too."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def check_metadata(certificate: Certificate, facts: ModelMetadata, name: str) -> None:
    """That the model of the name says of itself what its certificate says."""
    for key, said in (("weights_sha256", certificate.hashes.weights_sha256), ("dataset", certificate.dataset.name)):
        found = facts.metadata.get(key)
        if found != said:
            raise LockstepError(
                f"{name}: its metadata {key} is {found!r:.80} where its certificate has {said!r:.80}; run `dvc repro`"
            )
