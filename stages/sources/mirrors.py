"""Published files, by name and checksum, from the first mirror that delivers them right."""

import hashlib
import os
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

from tqdm import tqdm

from stages.core.command import echo
from stages.core.errors import StageError, UnavailableError
from stages.core.files import atomic_write

TIMEOUT = 4.0  # seconds to connect, and for each read
BLOCK = 1 << 16  # bytes


@dataclass(frozen=True)
class PublishedFile:
    name: str
    md5: str

    def intact(self, folder: Path) -> bool:
        path = folder / self.name
        return path.is_file() and md5(path) == self.md5


class MirrorError(Exception):
    """Why a mirror did not deliver a file."""


class MirrorUnreachableError(MirrorError):
    """The mirror does not answer at all: it need not be asked for the next file."""


def with_own(mirrors: Sequence[str]) -> list[str]:
    """The mirrors of a data set, headed by LOCKSTEP_MIRROR: a folder or a URL."""
    own = os.environ.get("LOCKSTEP_MIRROR", "").strip()
    return [own, *mirrors] if own else list(mirrors)


def download_files(files: Sequence[PublishedFile], mirrors: Sequence[str], folder: Path) -> None:
    """Bring each file into the folder, from the first mirror that delivers it, unless it is there already."""
    wrongs: list[str] = []
    silent: set[str] = set()
    for file in files:
        if file.intact(folder):
            continue
        for mirror in with_own(mirrors):
            if mirror in silent:
                continue
            try:
                deliver(mirror, file, folder / file.name)
                break
            except MirrorError as wrong:
                wrongs.append(f"{mirror}: {wrong}")
                echo(f"mirror {wrongs[-1]}")
                if isinstance(wrong, MirrorUnreachableError):
                    silent.add(mirror)
        else:
            raise UnavailableError(
                f"no mirror delivered {file.name}. Tried: {'; '.join(wrongs)}. Connect to the internet, set "
                "LOCKSTEP_MIRROR to a folder or URL that has the files, or take the embedded digits: "
                "make run DATASET=digits"
            )


def deliver(mirror: str, file: PublishedFile, target: Path) -> None:
    """Write the mirror's copy to the target if it has the checksum of the published file."""
    with atomic_write(target) as beside:
        try:
            with opened(mirror, file.name) as (source, size):
                copy(source, beside, size, file.name)
        except (HTTPError, HTTPException, FileNotFoundError, ValueError) as error:  # ValueError: not a URL
            raise MirrorError(f"{file.name}: {error}") from None
        except OSError as error:
            raise MirrorUnreachableError(f"{file.name}: {getattr(error, 'reason', error)}") from None
        if md5(beside) != file.md5:
            raise MirrorError(f"{file.name}: {describe(beside, size)}, not the published file by its checksum")


@contextmanager
def opened(mirror: str, name: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """A mirror's file as a stream, with its size where that is known."""
    if "://" not in mirror:
        path = Path(mirror).expanduser() / name
        with path.open("rb") as file:
            yield file, path.stat().st_size
    else:
        with in_time(f"{mirror.rstrip('/')}/{name}") as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length else None


def in_time(url: str) -> Any:
    """urlopen, given up on after the time-out also where the resolver alone takes longer."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(url, timeout=TIMEOUT))  # noqa: S310, a person's own mirror
        except HTTPError as error:
            error.close()  # it holds the connection open
            answer.append(error)
        except Exception as error:  # handed to the caller below
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT + 1)
    if not answer:
        raise TimeoutError(f"no answer in {TIMEOUT:.0f} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def copy(source: IO[bytes], path: Path, size: int | None, name: str) -> None:
    with (
        tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        path.open("wb") as sink,
    ):
        while block := source.read(BLOCK):
            try:
                sink.write(block)
                sink.flush()
            except OSError as error:  # the disk's fault, not the mirror's
                raise StageError(f"{path}: cannot be written: {error}") from None
            bar.update(len(block))


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def describe(path: Path, size: int | None) -> str:
    """What came instead of the file, for whoever has to find out why."""
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return f"an HTML page of {length} bytes"
    if size is not None and length < size:
        return f"{length} of {size} bytes"
    return f"{length} bytes"


def check_available(file: PublishedFile, mirrors: Sequence[str]) -> None:
    """Raise what `fetch` would raise, were it to fetch the file now."""
    with tempfile.TemporaryDirectory() as scratch:
        download_files([file], mirrors, Path(scratch))
