"""The settings of the HTTP service; importing them needs no web framework."""

from dataclasses import dataclass
from pathlib import Path

from lockstep.decoding import MAX_PIXELS
from lockstep.proof import ProofFiles


@dataclass(frozen=True)
class ModelFiles:
    model: Path
    proof_files: ProofFiles | None  # None: load a model without golden sample and certificate
    report: Path | None  # what the stage evaluate wrote, shown at /model

    def stat_files(self) -> list[tuple[int, ...] | None]:
        """Changes if one of the model's files is replaced or written to."""
        return [stat_file(path) for path in (self.model, *(self.proof_files.paths if self.proof_files else ()))]


def stat_file(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@dataclass(frozen=True)
class Settings:
    files: ModelFiles
    threads: int = 1  # of the network
    max_concurrent_images: int = 256  # of all requests that are being answered
    max_bytes: int = 16_000_000  # of a request; all requests together may hold 16 times as many
    max_pixels: int = MAX_PIXELS  # of an image file
    max_images: int = 64  # of a request
    request_timeout: float = 10.0  # seconds for a request to arrive
    answer_timeout: float = 30.0  # seconds until a request that has arrived is answered with 503
    allowed_hosts: tuple[str, ...] = ()  # whose pages may send requests
    hosts: tuple[str, ...] | None = ()  # names for which requests are answered, beside loopback's; None: any
    reload_interval: float = 1.0  # seconds between two checks of the model's files
