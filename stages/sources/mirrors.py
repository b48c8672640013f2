"""Downloads published files, each from the first mirror that delivers it with the right checksum."""

import hashlib
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tqdm import tqdm

from stages.core.command import echo
from stages.core.errors import StageError, UnavailableError
from stages.core.files import atomic_write

TIMEOUT = 4.0  # seconds to connect, and for each read
BLOCK = 1 << 16  # bytes
MAX_BYTES = 64_000_000  # of a file; the largest published one has 26 million
# Bytes a second, on average, that a mirror delivers after the first seconds. With MAX_BYTES it limits a whole download.
MIN_SPEED, SLOW_SECONDS = 20_000, 20.0


@dataclass(frozen=True)
class PublishedFile:
    name: str
    md5: str

    def is_intact(self, folder: Path) -> bool:
        path = folder / self.name
        return path.is_file() and file_md5(path) == self.md5


class MirrorError(Exception):
    """Why a mirror did not deliver a file."""


class MirrorUnreachableError(MirrorError):
    """The mirror does not answer at all: it is not asked for the other files."""


def download_files(files: Sequence[PublishedFile], mirrors: Sequence[str], folder: Path) -> None:
    """Download each file that the folder lacks. LOCKSTEP_MIRROR, a folder or a URL, is asked before the mirrors."""
    user_mirror = os.environ.get("LOCKSTEP_MIRROR", "").strip()
    reachable = [user_mirror, *mirrors] if user_mirror else list(mirrors)
    failures: list[str] = []
    for file in files:
        if file.is_intact(folder):
            continue
        for mirror in list(reachable):
            try:
                download_file(file, mirror, folder / file.name)
                break
            except MirrorError as error:
                failures.append(f"{hide_user(mirror)}: {error}")
                echo(f"mirror {failures[-1]}")
                if isinstance(error, MirrorUnreachableError):
                    reachable.remove(mirror)
        else:
            raise UnavailableError(
                f"no mirror delivered {file.name}. Tried: {'; '.join(failures)}. Connect to the internet, set "
                "LOCKSTEP_MIRROR to a folder or URL that has the files, or take the embedded digits: "
                "make run DATASET=digits"
            )


def download_file(file: PublishedFile, mirror: str, target: Path) -> None:
    with atomic_write(target) as tmp:
        try:
            with open_mirror_file(mirror, file.name) as (stream, size):
                copy_stream(stream, tmp, size, file.name)
        except (HTTPError, HTTPException, FileNotFoundError, ValueError) as error:  # ValueError: not a URL
            raise MirrorError(f"{file.name}: {' '.join(str(error).split())}") from None
        except OSError as error:
            raise MirrorUnreachableError(f"{file.name}: {getattr(error, 'reason', error)}") from None
        if file_md5(tmp) != file.md5:
            content = describe_content(tmp, size)
            raise MirrorError(f"{file.name}: {content}, not the published file by its checksum")


@contextmanager
def open_mirror_file(mirror: str, name: str) -> Iterator[tuple[BufferedIOBase, int | None]]:
    """The file as a stream, with its size in bytes where that is known."""
    if hide_user(mirror) != mirror:
        raise ValueError("a URL with a user name or password is not supported")
    if "://" not in mirror:
        path = Path(mirror).expanduser() / name
        with path.open("rb") as file:
            yield file, path.stat().st_size
    else:
        with open_url(f"{mirror.rstrip('/')}/{name}") as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length else None


def hide_user(url: str) -> str:
    """The URL without a user name and password, which belong in no log."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def open_url(url: str) -> Any:
    """urlopen in a thread, since its own time-out does not include the look-up of the host name."""
    response: Future[Any] = Future()

    def request() -> None:
        try:
            response.set_result(urllib.request.urlopen(url, timeout=TIMEOUT))  # noqa: S310, the user chooses the mirror
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()  # closes the connection
            response.set_exception(error)

    threading.Thread(target=request, daemon=True).start()
    wait([response], TIMEOUT + 1)
    if not response.done():
        raise TimeoutError(f"no answer in {TIMEOUT:.0f} s")
    return response.result()


def copy_stream(stream: BufferedIOBase, path: Path, size: int | None, name: str) -> None:
    progress = tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=None)
    start, received = time.monotonic(), 0
    with progress, path.open("wb") as file:
        while block := stream.read1(BLOCK):  # returns what has arrived; read would wait for a whole block
            received += len(block)
            if received > MAX_BYTES:
                raise MirrorError(f"{name}: sends more than {MAX_BYTES:,} bytes, and no published file is so large")
            if received < MIN_SPEED * (time.monotonic() - start - SLOW_SECONDS):
                raise MirrorUnreachableError(f"{name}: slower than {MIN_SPEED:,} bytes a second")
            try:
                file.write(block)
                file.flush()
            except OSError as error:  # of this disk, not of the mirror
                raise StageError(f"{path}: cannot be written: {error}") from None
            progress.update(len(block))


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def describe_content(path: Path, size: int | None) -> str:
    """What the mirror sent instead of the file."""
    length = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return f"an HTML page of {length} bytes"
    return f"{length} of {size} bytes" if size is not None and length < size else f"{length} bytes"


def check_available(file: PublishedFile, mirrors: Sequence[str]) -> None:
    """Raise UnavailableError if no mirror delivers the file now."""
    with tempfile.TemporaryDirectory() as folder:
        download_files([file], mirrors, Path(folder))
