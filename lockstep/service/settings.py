"""The settings of the HTTP service; importing them needs no web framework."""

from dataclasses import dataclass
from pathlib import Path

from lockstep.proof import Proof


@dataclass(frozen=True)
class ModelFiles:
    model: Path
    proof: Proof | None  # None: load a model without golden sample and certificate
    report: Path | None  # what the stage evaluate wrote, shown at /model

    def signature(self) -> list[tuple[int, ...] | None]:
        """Changes if one of the model's files is replaced or written to."""
        proof = (self.proof.golden, self.proof.certificate) if self.proof else ()
        return [file_signature(path) for path in (self.model, *proof)]


def file_signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@dataclass(frozen=True)
class Settings:
    files: ModelFiles
    threads: int = 1  # of the network
    queue: int = 256  # images being answered at once
    max_bytes: int = 16_000_000  # of a request; all requests together may hold 16 times as many
    max_pixels: int = 40_000_000  # of an image file
    max_images: int = 64  # of a request
    receive_seconds: float = 10.0  # for a request to arrive
    answer_seconds: float = 30.0  # until a request that has arrived is answered with 503
    reload_seconds: float = 1.0  # between two checks of the model's files
