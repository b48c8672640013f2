"""The service under load: requests a second and latencies at 1, 8 and 64 connections, beside it without batching,
and beside PyTorch called in eager mode from as many threads, without any HTTP.

python -m benchmarks.service
"""

import asyncio
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image

from benchmarks.machine import ROOT, Results, describe

CONNECTIONS = (1, 8, 64)
MODEL, WEIGHTS, SPLITS = (ROOT / "data" / path for path in ("model/model.onnx", "model/weights.safetensors", "splits"))

app = App(name="python -m benchmarks.service", result_action="return_none")


@app.default
def measure(*, seconds: float = 5.0, rounds: int = 3) -> None:
    """Each way in turn, for some seconds at a time; medians of the rounds."""
    results = Results("service", describe(1))
    print(f"on {results.machine}, which client and service share; medians of {rounds} rounds of {seconds:g} s\n")
    image = np.load(SPLITS / "test-images.npy", mmap_mode="r")[0, 0]
    pixels = request(json.dumps({"images": [image.tolist()]}).encode(), "application/json")
    data = io.BytesIO()
    Image.fromarray(255 - image).resize((140, 140)).save(data, "PNG")
    picture = request(data.getvalue(), "image/png")
    rows: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for name, sent, flags in (
                ("service, pixels", pixels, []),
                ("the same, without batching", pixels, ["--batch", "1", "--wait-ms", "0"]),
                ("service, PNG of 140 x 140", picture, []),
            ):
                with service(flags) as port:
                    rows.setdefault((name, connections), []).append(load(port, connections, sent, seconds))
            rows.setdefault(("PyTorch eager, threads", connections), []).append(eager(connections, seconds))
    print("| | at once | requests a second | p50 | p99 |\n|---|---|---|---|---|")
    for (name, connections), numbers in sorted(rows.items(), key=lambda row: list(rows).index(row[0]) % 4):
        rate, p50, p99 = np.median(numbers, axis=0)
        print(f"| {name} | {connections} | {rate:,.0f} | {1000 * p50:.2f} ms | {1000 * p99:.2f} ms |")
        results.add({"way": name, "connections": connections, "rate": rate, "p50": p50, "p99": p99})


def request(body: bytes, kind: str) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def service(flags: list[str]) -> Iterator[int]:
    command = [sys.executable, "-m", "lockstep", "serve", "--model", str(MODEL), "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r":(\d+)/", process.stdout.readline())
        if not found:
            sys.exit("the service does not start")  # and has said why
        try:
            yield int(found[1])
        finally:
            process.terminate()


def load(port: int, connections: int, sent: bytes, seconds: float) -> list[float]:
    """Requests a second, and the latencies that half and 99 % of the requests stay below."""
    return asyncio.run(loaded(port, connections, sent, seconds))


async def loaded(port: int, connections: int, sent: bytes, seconds: float) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds + 0.5

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < until:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            found = re.search(rb"content-length: (\d+)", head)
            assert found
            await reader.readexactly(int(found[1]))
            if started > until - seconds:  # half a second to warm up
                taken.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return [len(taken) / seconds, *np.quantile(taken, [0.5, 0.99]).tolist()]


def eager(threads: int, seconds: float) -> list[float]:
    """In a process of its own, which has no service in it."""
    command = [sys.executable, "-m", "benchmarks.service", "torch", str(threads), str(seconds)]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers: list[float] = json.loads(said)
    return numbers


@app.command(name="torch")
def in_torch(threads: int, seconds: float) -> None:
    import torch

    from stages.network.weights import read_weights

    torch.set_num_threads(1)
    network, _ = read_weights(Path(WEIGHTS))
    image = torch.from_numpy(np.load(SPLITS / "test-images.npy", mmap_mode="r")[:1].copy())
    taken: list[float] = []
    until = time.perf_counter() + seconds + 0.5

    def ask() -> None:
        with torch.inference_mode():
            while (started := time.perf_counter()) < until:
                network(image).softmax(1).tolist()
                if started > until - seconds:
                    taken.append(time.perf_counter() - started)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    print(json.dumps([len(taken) / seconds, *np.quantile(taken, [0.5, 0.99]).tolist()]))


if __name__ == "__main__":
    app()
