"""Verifies the signature of a model, made with OpenSSF's model-signing and an elliptic-curve key."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from lockstep.errors import LockstepError

SIGNATURE = "model.sig"  # beside the files that it signs
CARD = "CARD.md"


def check_signature(files: Mapping[str, bytes], signature: bytes, key: Path, path: str) -> None:
    """LockstepError unless the key's owner has signed exactly these files.

    Args:
        files: the bytes of each file by its name when it was signed.
        signature: the content of the signature file.
        key: the public key, as PEM.
        path: the model's path, for messages.
    """
    try:
        from model_signing import verifying
    except ModuleNotFoundError as error:
        raise LockstepError(f"a signature needs {error.name}: in a checkout, pip install '.[signing]'") from None
    with TemporaryDirectory() as folder:  # the library reads files; these are the bytes that will be used
        model, signature_file = Path(folder) / "model", Path(folder) / SIGNATURE
        model.mkdir()
        for name, content in files.items():
            (model / name).write_bytes(content)
        signature_file.write_bytes(signature)
        try:
            verifier = verifying.Config()  # type: ignore[no-untyped-call]
            verifier.use_elliptic_key_verifier(public_key=key).verify(model, signature_file)
        except Exception as error:  # of many types: a damaged signature, another key, other files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise LockstepError(f"{path}: its signature does not hold for the key {key}: {reason}") from None
