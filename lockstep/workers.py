"""Prepares image files, in processes of their own once it takes long: names in, the network's inputs in order out."""

import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from queue import SimpleQueue
from subprocess import PIPE

import numpy as np

from lockstep.decoding import open_image
from lockstep.errors import ImageError, LockstepError
from lockstep.metadata import ModelMetadata
from lockstep.preparation import Pixels, prepare_image

STDIN = "-"
Prepared = tuple[str, Pixels | ImageError]
START_SECONDS = 0.3  # of preparing in this process, before others are started: about what it takes to start them
CHUNK_SIZE = 16  # images that a worker is given at once
CHUNKS_AHEAD = 3  # per worker: so much is prepared, at most, before the results are taken
# The parent's sys.path, and not the current folder, where a json.py may be. SIGINT is for the parent, which ends stdin.
PROGRAM = "import sys; sys.path[:] = {path!r}; from lockstep.workers import serve_parent; serve_parent()"


class WorkerError(LockstepError):
    """A worker has ended: most likely the system had too little memory, and killed it."""


@dataclass(frozen=True)
class Preparation:
    metadata: ModelMetadata
    max_pixels: int

    def prepare(self, source: str) -> Pixels | ImageError:
        try:
            return prepare_image(open_image(read_source(source), self.max_pixels), self.metadata)
        except ImageError as error:
            return error


def read_source(source: str) -> bytes | str:
    if source == STDIN:
        if sys.stdin is None:
            raise ImageError("the standard input is closed")
        return sys.stdin.buffer.read()
    if os.path.isdir(source):  # noqa: PTH112, Path.is_dir raises if the name is too long
        raise ImageError("the folder contains no image")
    return source


def prepare_files(sources: Iterable[str], preparation: Preparation, processes: int) -> Generator[Prepared, None, None]:
    """In the order of `sources`, of which no more are read than is needed to keep the processes busy."""
    sources = iter(sources)
    started = time.perf_counter()
    for source in sources:
        yield source, preparation.prepare(source)
        if processes > 1 and time.perf_counter() - started > START_SECONDS:
            break
    chunks = iter(lambda: list(islice(sources, CHUNK_SIZE)), [])
    if (first := next(chunks, None)) is None:
        return
    pool = WorkerPool(preparation, processes)
    try:
        futures: deque[Future[list[Prepared]]] = deque([pool.submit(first)])
        futures.extend(map(pool.submit, islice(chunks, CHUNKS_AHEAD * processes)))
        while futures:
            yield from futures.popleft().result()
            futures.extend(map(pool.submit, islice(chunks, 1)))
    finally:
        pool.close()


class WorkerPool:
    """Processes that each answer a thread, one chunk after the other."""

    def __init__(self, preparation: Preparation, processes: int) -> None:
        self.preparation = preparation
        self.workers = [start_worker(preparation) for _ in range(processes)]
        self.idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(processes)

    def submit(self, chunk: list[str]) -> "Future[list[Prepared]]":
        if STDIN not in chunk:
            return self.threads.submit(self.prepare_chunk, chunk)
        read: Future[list[Prepared]] = Future()  # in this thread, where Ctrl-C ends the reading
        read.set_result([(source, self.preparation.prepare(source)) for source in chunk])
        return read

    def prepare_chunk(self, chunk: list[str]) -> list[Prepared]:
        worker = self.idle.get()
        try:
            results = request_chunk(worker, chunk, self.preparation.metadata.shape)
        finally:
            self.idle.put(worker)
        return list(zip(chunk, results, strict=True))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            with suppress(BrokenPipeError), worker:
                pass


def start_worker(preparation: Preparation) -> subprocess.Popen[bytes]:
    """It ends when its stdin is closed, also if this process is killed. Ctrl-C does not reach it."""
    command = [sys.executable, "-P", "-c", PROGRAM.format(path=sys.path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        worker = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True)
    except OSError as error:
        raise WorkerError(
            f"no process to prepare images can be started: {error.strerror}; --threads 1 starts none"
        ) from None
    assert worker.stdin
    worker.stdin.write(json.dumps(asdict(preparation)).encode() + b"\n")
    return worker


def request_chunk(
    worker: "subprocess.Popen[bytes]", chunk: list[str], shape: tuple[int, int, int]
) -> list[Pixels | ImageError]:
    assert worker.stdin
    assert worker.stdout
    with suppress(BrokenPipeError):
        worker.stdin.write(json.dumps(chunk).encode() + b"\n")
        worker.stdin.flush()
    size = len(chunk) * math.prod(shape)
    head, data = worker.stdout.readline(), worker.stdout.read(size)
    if len(data) < size:
        status = worker.wait()
        reason = f"was killed by signal {-status}, perhaps for want of memory" if status < 0 else f"ended with {status}"
        raise WorkerError(f"a process that prepares images {reason}; --threads 1 starts none")
    pixels = np.frombuffer(data, np.uint8).reshape(len(chunk), *shape)
    return [one if error is None else ImageError(error) for one, error in zip(pixels, json.loads(head), strict=True)]


def serve_parent() -> None:
    """In a worker: read chunks of names, a line of JSON each; answer a line of errors or nulls, and the pixels."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    settings = json.loads(requests.readline())
    preparation = Preparation(ModelMetadata(**settings["metadata"]), settings["max_pixels"])
    blank = np.zeros(preparation.metadata.shape, np.uint8)
    for line in requests:
        results = [preparation.prepare(source) for source in json.loads(line)]
        errors = [str(result) if isinstance(result, ImageError) else None for result in results]
        pixels = [blank if isinstance(result, ImageError) else result for result in results]
        try:
            answers.write(json.dumps(errors).encode() + b"\n" + b"".join(one.tobytes() for one in pixels))
            answers.flush()
        except BrokenPipeError:  # the parent has ended
            os._exit(1)
