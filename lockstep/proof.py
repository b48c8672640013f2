"""What proves a model: the golden sample and the certificate beside it, each read once, and held against its bytes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lockstep.certificate import Certificate, read_certificate
from lockstep.errors import FileMissingError, HashMismatchError

MAKES = "`dvc repro` makes it, `dvc pull` fetches it"


class Evidence(NamedTuple):
    certificate: Certificate
    golden: bytes  # whose SHA-256 is the certificate's


@dataclass(frozen=True)
class Proof:
    """Where golden sample and certificate lie."""

    golden: Path
    certificate: Path

    @classmethod
    def next_to(cls, model: Path) -> "Proof":
        return cls(model.parent / "golden.json", model.parent / "certificate.json")

    def read(self, model: bytes, name: str) -> Evidence:
        """Of the model with these bytes, before anything is made of them."""
        golden = read_file(self.golden, f"a golden sample proves a model; {MAKES}")
        data = read_file(self.certificate, f"a certificate proves a model that passed its gates; {MAKES}")
        certificate = read_certificate(data, str(self.certificate))
        for path, content, said in (
            (name, model, certificate.hashes.model_sha256),
            (self.golden, golden, certificate.hashes.golden_sha256),
        ):
            found = hashlib.sha256(content).hexdigest()
            if found != said:
                raise HashMismatchError(
                    f"{self.certificate}: does not certify {path}: it names sha256 {said[:12]}, and the file has "
                    f"{found[:12]}; `dvc repro` certifies a model that passes its gates"
                )
        return Evidence(certificate, golden)


def read_file(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileMissingError(f"{path}: there is no such file; {missing}") from None
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be read: {error.strerror}") from None
