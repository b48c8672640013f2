"""Counts who has rebuilt a model: signed in-toto statements that a rebuild gave exactly these bytes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError

STATEMENTS = "model.intoto.jsonl"  # beside the model: one signed envelope (DSSE) a line
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILDER = "urn:lockstep:rebuild"  # other provenance, as of the original build, is no rebuild


def check_rebuilt(
    files: Mapping[str, bytes], statements: bytes, keys: Sequence[Path], required: int, path: str
) -> None:
    """LockstepError unless so many of the keys have each signed a statement of exactly these files.

    Args:
        files: the bytes of each file by its name in the statements.
        statements: the content of the file of statements.
        keys: public keys, as PEM, of those who are trusted to rebuild.
        required: how many of them must have stated it.
        path: the file of statements, for messages.
    """
    try:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError
    except ModuleNotFoundError as error:
        raise LockstepError(f"a statement needs {error.name}: in a checkout, pip install '.[signing]'") from None
    trusted = [read_key(key) for key in keys]
    signers: set[str] = set()
    others = 0  # statements of other bytes
    for number, line in enumerate(statements.splitlines(), 1):
        try:
            envelope = Envelope.from_dict(json.loads(line))
            for key in trusted:
                try:
                    envelope.verify([key], 1)
                except VerificationError:  # signed by someone else, or changed since
                    continue
                if states(envelope, files):
                    signers.add(key.keyid)
                else:
                    others += 1
        except Exception as error:  # of many types: not JSON, not an envelope
            reason = " ".join(str(error).split())
            raise LockstepError(f"{path}: line {number} is not a signed statement ({reason:.80})") from None
    if len(signers) < required:
        raise LockstepError(
            f"{path}: {len(signers)} of {len({key.keyid for key in trusted})} keys have stated that a rebuild gave "
            f"these bytes, {required} are required"
            + (f"; {others} of their statements are of other bytes" if others else "")
        )


def read_key(path: Path) -> Any:
    """The public key; equal keys have equal ids, whatever their files are called."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    try:
        return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
    except OSError as error:
        raise LockstepError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise LockstepError(f"{path}: not a public key of a kind that is supported, as PEM") from None


def states(envelope: Any, files: Mapping[str, bytes]) -> bool:
    """Whether its statement is of a rebuild, and names each of these files with its hash."""
    statement = json.loads(envelope.payload)
    builder = statement.get("predicate", {}).get("runDetails", {}).get("builder", {}).get("id")
    if (envelope.payload_type, statement.get("predicateType"), builder) != (PAYLOAD_TYPE, PREDICATE_TYPE, BUILDER):
        return False
    stated = dict(read_subjects(statement))
    return all(stated.get(name) == hashlib.sha256(content).hexdigest() for name, content in files.items())


def read_subjects(statement: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for subject in statement["subject"]:
        yield subject["name"], subject["digest"]["sha256"]
