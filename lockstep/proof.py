"""Reads the golden sample and the certificate of a model, and checks that the hashes of all three agree."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lockstep.certificate import REPLACE_FILES, Certificate, read_certificate
from lockstep.errors import FileMissingError, HashMismatchError, LockstepError
from lockstep.rebuilt import STATEMENTS, check_rebuilt
from lockstep.signature import CARD, SIGNATURE, check_signature

HINT = "`dvc repro` makes it, `dvc pull` fetches it; verify=False and --no-verify do without"


class ProofContents(NamedTuple):
    certificate: Certificate
    golden: bytes  # whose SHA-256 the certificate names


@dataclass(frozen=True)
class ProofFiles:
    """The paths of a model's golden sample and certificate, and what else must prove them.

    Args:
        key: the public key that must have signed them. The model card and the signature, model.sig, are beside the
            certificate.
        rebuilt: how many of the rebuilder keys must have stated that a rebuild gave these bytes. The statements,
            model.intoto.jsonl, are beside the certificate.
        rebuilder_keys: the public keys of those who are trusted to rebuild.
    """

    golden: str | Path
    certificate: str | Path
    key: str | Path | None = None
    rebuilt: int = 0
    rebuilder_keys: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        if self.rebuilt < 0 or bool(self.rebuilt) != bool(self.rebuilder_keys):
            raise LockstepError("statements of rebuilds need both: how many (--rebuilt), and whose (--rebuilder-key)")

    @classmethod
    def beside_model(cls, model: str | Path, key: str | Path | None = None) -> "ProofFiles":
        folder = Path(model).parent
        return cls(folder / "golden.json", folder / "certificate.json", key)

    @property
    def paths(self) -> list[Path]:
        folder = Path(self.certificate).parent
        names = [*((CARD, SIGNATURE) if self.key else ()), *((STATEMENTS,) if self.rebuilt else ())]
        return [Path(self.golden), Path(self.certificate), *(folder / name for name in names)]

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
                    f"{actual[:12]}; {REPLACE_FILES}"
                )
        files = {"model.onnx": model, "golden.json": golden, "certificate.json": data}
        folder = Path(self.certificate).parent
        if self.key:
            card, signature = (
                read_file(folder / file, "a signed model has a card and a signature; `make sign` signs it")
                for file in (CARD, SIGNATURE)
            )
            check_signature({**files, CARD: card}, signature, Path(self.key), name)
        if self.rebuilt:
            path = folder / STATEMENTS
            statements = read_file(path, "a rebuilt model has statements; `lockstep rebuild` makes one")
            check_rebuilt(files, statements, [*map(Path, self.rebuilder_keys)], self.rebuilt, str(path))
        return ProofContents(certificate, golden)


def read_file(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileMissingError(f"{path}: there is no such file; {hint}") from None
    except OSError as error:
        raise FileMissingError(f"{path}: cannot be read: {error.strerror}") from None
