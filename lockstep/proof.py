"""Reads the golden sample and the certificate of a model, and checks that the hashes of all three agree."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lockstep.certificate import Certificate, read_certificate
from lockstep.errors import FileMissingError, HashMismatchError
from lockstep.signature import CARD, SIGNATURE, check_signature

HINT = "`dvc repro` makes it, `dvc pull` fetches it; verify=False and --no-verify do without"


class ProofContents(NamedTuple):
    certificate: Certificate
    golden: bytes  # whose SHA-256 the certificate names


@dataclass(frozen=True)
class ProofFiles:
    """The paths of a model's golden sample and certificate, and the public key that must have signed them.

    With a key, the model card and the signature, model.sig, are expected beside the certificate.
    """

    golden: str | Path
    certificate: str | Path
    key: str | Path | None = None

    @classmethod
    def beside_model(cls, model: Path, key: str | Path | None = None) -> "ProofFiles":
        return cls(model.parent / "golden.json", model.parent / "certificate.json", key)

    @property
    def paths(self) -> list[Path]:
        files = [Path(self.golden), Path(self.certificate)]
        folder = files[1].parent
        return [*files, folder / CARD, folder / SIGNATURE] if self.key else files

    def read_and_check(self, model: bytes, name: str) -> ProofContents:
        """Read each file once, and check the hashes before anything else is done with the model's bytes."""
        golden = read_file(Path(self.golden), f"a proven model has a golden sample; {HINT}")
        data = read_file(Path(self.certificate), f"a proven model has a certificate; {HINT}")
        certificate = read_certificate(data, str(self.certificate))
        hashes = certificate.hashes
        for path, content, certified in (
            (name, model, hashes.model_sha256),
            (self.golden, golden, hashes.golden_sha256),
        ):
            actual = hashlib.sha256(content).hexdigest()
            if actual != certified:
                raise HashMismatchError(
                    f"{self.certificate}: does not certify {path}: it names sha256 {certified[:12]}, the file has "
                    f"{actual[:12]}; `dvc repro` certifies a model that passes its gates"
                )
        if self.key:
            card, signature = (
                read_file(path, "a signed model has a card and a signature; `make sign` signs it")
                for path in self.paths[2:]
            )
            files = {"model.onnx": model, "golden.json": golden, "certificate.json": data, CARD: card}
            check_signature(files, signature, Path(self.key), name)
        return ProofContents(certificate, golden)


def read_file(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileMissingError(f"{path}: there is no such file; {hint}") from None
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be read: {error.strerror}") from None
