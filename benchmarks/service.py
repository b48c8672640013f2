"""Requests per second and latencies of the HTTP service at 1, 8 and 64 connections, compared with PyTorch in eager mode
called from as many threads without HTTP.

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

from benchmarks.machine import ROOT, Results, describe_machine

CONNECTIONS = (1, 8, 64)
MODEL, WEIGHTS, SPLITS = (ROOT / "data" / path for path in ("model/model.onnx", "model/weights.safetensors", "splits"))

app = App(name="python -m benchmarks.service", result_action="return_none")


@app.default
def measure(*, seconds: float = 5.0, rounds: int = 3) -> None:
    """Measure each configuration in turn, `seconds` at a time; print medians of the rounds."""
    results = Results("service", describe_machine(1))
    print(f"{results.machine}, shared by client and service; medians of {rounds} rounds of {seconds:g} s\n")
    image = np.load(SPLITS / "test-images.npy", mmap_mode="r")[0, 0]
    pixels = http_request(json.dumps({"images": [image.tolist()]}).encode(), "application/json")
    data = io.BytesIO()
    Image.fromarray(255 - image).resize((140, 140)).save(data, "PNG")
    png = http_request(data.getvalue(), "image/png")
    rows: dict[tuple[str, int], list[list[float]]] = {}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for name, message in (("service, pixels", pixels), ("service, PNG of 140 x 140", png)):
                with run_service() as port:
                    rows.setdefault((name, connections), []).append(measure_load(port, connections, message, seconds))
            rows.setdefault(("PyTorch eager, threads", connections), []).append(measure_eager(connections, seconds))
    print("| | connections | requests per second | p50 | p99 |\n|---|---|---|---|---|")
    for (name, connections), numbers in sorted(rows.items(), key=lambda row: list(rows).index(row[0]) % 3):
        rate, p50, p99 = np.median(numbers, axis=0)
        print(f"| {name} | {connections} | {rate:,.0f} | {1000 * p50:.2f} ms | {1000 * p99:.2f} ms |")
        results.add({"way": name, "connections": connections, "rate": rate, "p50": p50, "p99": p99})


def http_request(body: bytes, kind: str) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def run_service() -> Iterator[int]:
    """Yield the port of a service in a process of its own."""
    command = [sys.executable, "-m", "lockstep", "serve", "--model", str(MODEL), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        match = re.search(r":(\d+)/", process.stdout.readline())
        if not match:
            sys.exit("the service did not start; see its message above")
        try:
            yield int(match[1])
        finally:
            process.terminate()


def measure_load(port: int, connections: int, message: bytes, seconds: float) -> list[float]:
    """Requests per second, and the median and 99th percentile of their latencies in seconds."""
    return asyncio.run(send_requests(port, connections, message, seconds))


async def send_requests(port: int, connections: int, message: bytes, seconds: float) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds + 0.5  # half a second to warm up

    async def send_until_end() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            match = re.search(rb"content-length: (\d+)", head)
            assert match
            await reader.readexactly(int(match[1]))
            if started > end - seconds:
                latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(send_until_end() for _ in range(connections)))
    return [len(latencies) / seconds, *np.quantile(latencies, [0.5, 0.99]).tolist()]


def measure_eager(threads: int, seconds: float) -> list[float]:
    """The same numbers for the PyTorch network, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.service", "torch", str(threads), str(seconds)]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers: list[float] = json.loads(output)
    return numbers


@app.command(name="torch")
def print_eager(threads: int, seconds: float) -> None:
    import torch

    from stages.network.weights import read_weights

    torch.set_num_threads(1)
    network, _ = read_weights(Path(WEIGHTS))
    image = torch.from_numpy(np.load(SPLITS / "test-images.npy", mmap_mode="r")[:1].copy())
    latencies: list[float] = []
    end = time.perf_counter() + seconds + 0.5

    def predict_until_end() -> None:
        with torch.inference_mode():
            while (started := time.perf_counter()) < end:
                network(image).softmax(1).tolist()
                if started > end - seconds:
                    latencies.append(time.perf_counter() - started)

    workers = [threading.Thread(target=predict_until_end) for _ in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    print(json.dumps([len(latencies) / seconds, *np.quantile(latencies, [0.5, 0.99]).tolist()]))


if __name__ == "__main__":
    app()
