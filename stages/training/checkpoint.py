"""The state of an unfinished training: found again only by the same work, held by one process, gone when done."""

import fcntl
import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from stages.core.command import echo
from stages.core.files import atomic_write
from stages.core.source import loaded_source_files


class Checkpoint:
    """At most one state in the folder, under the key of the work that it belongs to."""

    def __init__(self, folder: Path, key: str, seconds: float) -> None:
        self.path, self.seconds, self.saved = folder / f"{key}.pt", seconds, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        with atomic_write(self.path) as beside:
            buffer = io.BytesIO()  # torch's own writer tells no reason, such as a full disk
            torch.save(state, buffer)
            beside.write_bytes(buffer.getbuffer())
        self.saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, or None; states of other work, and halves of any, are dropped."""
        for path in self.path.parent.iterdir():
            if path.suffix in (".pt", ".partial") and path != self.path:
                path.unlink()
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError):
            echo(f"{self.path}: damaged; starting from the first step")
            return None
        return state

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for whoever holds it; the system frees it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"another training works with {folder}: waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(work: dict[str, Any], data: Sequence[Path]) -> str:
    """A hash of what decides the result: the work's description, its input files, and the source that runs."""
    digest = hashlib.blake2b(json.dumps([work, torch.__version__], sort_keys=True).encode(), digest_size=16)
    for path in [*sorted(loaded_source_files()), *sorted(data)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
