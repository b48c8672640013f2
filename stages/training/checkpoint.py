"""Saves the state of an unfinished training in the checkpoint folder, from which the same training resumes."""

import fcntl
import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.command import echo
from stages.core.files import atomic_write
from stages.core.source import loaded_source_files
from stages.network.models import Classifier
from stages.training.history import History
from stages.training.optimizers import Optimizer
from stages.training.trace import Trace

DIGEST_BYTES = 32  # of SHA-256, at the start of the file


@dataclass
class TrainingState:
    """All that changes while a network is trained."""

    network: Classifier
    optimizers: list[Optimizer]
    history: History
    trace: Trace
    steps_done: int = 0
    best_accuracy: float = -1.0
    best_weights: dict[str, Tensor] | None = None  # with `keep: best`

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "history": self.history.state_dict(),
            "trace": self.trace.rows,
            "steps_done": self.steps_done,
            "best": (self.best_accuracy, self.best_weights),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.network.load_state_dict(state_dict["network"])
        for optimizer, optimizer_state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.history.load_state_dict(state_dict["history"])
        self.trace.rows, self.steps_done = state_dict["trace"], state_dict["steps_done"]
        self.best_accuracy, self.best_weights = state_dict["best"]


class Checkpoint:
    """At most one file in the folder, named after the fingerprint of the training that it belongs to."""

    def __init__(self, folder: Path, fingerprint: str, interval: float) -> None:
        self.path, self.interval, self.last_save = folder / f"{fingerprint}.pt", interval, time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.last_save >= self.interval

    def save(self, state_dict: dict[str, Any]) -> None:
        with atomic_write(self.path) as tmp:
            buffer = io.BytesIO()  # torch.save to a file hides the reason of an error, such as a full disk
            torch.save(state_dict, buffer)
            with tmp.open("wb") as file:
                file.write(hashlib.sha256(buffer.getbuffer()).digest())
                file.write(buffer.getbuffer())
        self.last_save = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None; files of other trainings and partial files are deleted."""
        for path in self.path.parent.iterdir():
            if path.suffix in (".pt", ".partial") and path != self.path:
                path.unlink()
        if not self.path.exists():
            return None
        data = memoryview(self.path.read_bytes())
        try:
            if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
                raise ValueError("torch.load would take damaged tensors for whole ones")
            file = io.BytesIO(data[DIGEST_BYTES:])
            state_dict: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # of many types, for what is no checkpoint
            echo(f"{self.path}: damaged; starting from the first step")
            return None
        return state_dict

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder, waiting for it if necessary; the system releases it if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"another training uses {folder}: waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(description: dict[str, Any], data: Sequence[Path]) -> str:
    """A hash of all that the weights depend on: params and environment, the data files, and the loaded source files."""
    digest = hashlib.blake2b(json.dumps([description, torch.__version__], sort_keys=True).encode(), digest_size=16)
    for path in [*sorted(loaded_source_files()), *sorted(data)]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
