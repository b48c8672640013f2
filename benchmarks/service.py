"""Requests per second and latencies of the HTTP service with wrk as its client, beside the library without HTTP, and
with --others beside LitServe and MLServer with the same ONNX file.

python -m benchmarks.service
"""

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np
from cyclopts import App
from PIL import Image

from benchmarks.machine import ROOT, Results, describe_machine

CONNECTIONS = (1, 8, 64)
MODEL, SPLITS, SERVERS = ROOT / "data" / "model" / "model.onnx", ROOT / "data" / "splits", ROOT / "benchmarks/servers"
PACKAGES = {"litserve": ["litserve", "onnxruntime"], "mlserver": ["mlserver", "onnxruntime"]}

app = App(name="python -m benchmarks.service", result_action="return_none")


@dataclass(frozen=True)
class Message:
    """What is posted."""

    name: str
    path: str
    content_type: str
    body: bytes
    json_length: int | None = None  # of a V2 request with binary data


Server = Callable[[], AbstractContextManager[int]]  # yields the port


@app.default
def measure(*, seconds: float = 5.0, rounds: int = 3, others: bool = False) -> None:
    """Measure each configuration in turn, `seconds` at a time; print medians of the rounds."""
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed: apt-get install wrk, or brew install wrk")
    results = Results("service", describe_machine(1))
    print(f"{results.machine}, shared by client and service; medians of {rounds} rounds of {seconds:g} s\n")
    image = np.load(SPLITS / "test-images.npy", mmap_mode="r")[0]
    with tempfile.TemporaryDirectory() as folder:
        configurations = list_configurations(image, Path(folder), others)
        rows: dict[tuple[str, int], list[list[float]]] = {}
        for _ in range(rounds):
            rows.setdefault(("library, pixels, without HTTP", 1), []).append(measure_library(image, seconds))
            for name, server, message in configurations:
                with server() as port:
                    for connections in CONNECTIONS:
                        numbers = measure_load(port, connections, message, seconds, Path(folder))
                        rows.setdefault((f"{name}, {message.name}", connections), []).append(numbers)
    print("| | connections | requests per second | p50 | p99 |\n|---|---|---|---|---|")
    failures: list[str] = []
    for (name, connections), measured in rows.items():
        if any(failed or not rate for rate, _, _, failed in measured):  # a time-out of wrk (2 s) is a failure
            counts = ", ".join(f"{failed:g} of {seconds * rate:.0f}" for rate, _, _, failed in measured)
            failures.append(f"{name}, {connections} connections: requests failed: {counts}")
            continue
        rate, p50, p99, _ = np.median(measured, axis=0)
        print(f"| {name} | {connections} | {rate:,.0f} | {1000 * p50:.2f} ms | {1000 * p99:.2f} ms |")
        results.add({"way": name, "connections": connections, "client": "wrk", "rate": rate, "p50": p50, "p99": p99})
    if failures:
        sys.exit("\n".join(failures))


def list_configurations(image: np.ndarray[Any, Any], folder: Path, others: bool) -> list[tuple[str, Server, Message]]:
    pixels, tensors, raw, binary, png = make_messages(image)
    service, two_workers = partial(run_service), partial(run_service, "--workers", "2")
    configurations: list[tuple[str, Server, Message]] = [
        ("service", service, one) for one in (pixels, raw, binary, png)
    ]
    configurations += [("service, 2 workers", two_workers, raw), ("service, 2 workers", two_workers, png)]
    if others:
        for name in PACKAGES:
            make_environment(folder / name, PACKAGES[name])
        configurations += [
            ("LitServe", partial(run_litserve, folder / "litserve"), pixels),
            ("service", service, tensors),
            ("MLServer", partial(run_mlserver, folder / "mlserver"), tensors),
        ]
    return configurations


def make_messages(image: np.ndarray[Any, Any]) -> list[Message]:
    """Of one image: pixels as JSON, as a JSON tensor of V2, as bytes and as a binary tensor, and a picture."""
    file, infer = io.BytesIO(), "/v2/models/lockstep/infer"
    Image.fromarray(255 - image[0]).resize((140, 140)).save(file, "PNG")
    tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "UINT8"}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    tensors = json.dumps({"inputs": [{**tensor, "data": image.ravel().tolist()}]}).encode()
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": image.size}}], "outputs": outputs}
    head = json.dumps(binary).encode()
    return [
        Message("pixels as JSON", "/predict", "application/json", json.dumps({"images": image.tolist()}).encode()),
        Message("V2 with JSON", infer, "application/json", tensors),
        Message("raw pixels", "/predict", "application/x-lockstep-pixels", image.tobytes()),
        Message("V2 with binary data", infer, "application/octet-stream", head + image.tobytes(), len(head)),
        Message("PNG of 140 x 140", "/predict", "image/png", file.getvalue()),
    ]


def run_service(*flags: str) -> AbstractContextManager[int]:
    port = free_port()
    command = [sys.executable, "-m", "lockstep", "serve", "--model", str(MODEL), "--port", str(port), *flags]
    return run_server(command, port, "/readyz", ROOT)


def run_litserve(environment: Path) -> AbstractContextManager[int]:
    port = free_port()
    command = [str(environment / "bin/python"), str(SERVERS / "with_litserve.py"), str(MODEL), str(port)]
    return run_server(command, port, "/health", environment)


def run_mlserver(environment: Path) -> AbstractContextManager[int]:
    port = free_port()
    model = environment / "model"
    model.mkdir(exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
    }
    (model / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    (model / "model-settings.json").write_text(
        json.dumps({"name": "lockstep", "implementation": "with_mlserver.Digits"})
    )
    shutil.copy(SERVERS / "with_mlserver.py", model)
    command = [str(environment / "bin/mlserver"), "start", str(model)]
    return run_server(command, port, "/v2/models/lockstep/ready", model, LOCKSTEP_MODEL=str(MODEL))


@contextmanager
def run_server(command: list[str], port: int, ready: str, folder: Path, **environment: str) -> Iterator[int]:
    """A server in processes of its own, once it answers at the path."""
    environment = {**os.environ, **environment}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            end = time.monotonic() + 60
            while not answers(port, ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{' '.join(command[:3])} did not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield port
        finally:
            os.killpg(process.pid, 15)


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)  # urllib would ask a proxy
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def make_environment(folder: Path, packages: list[str]) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin/python")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)


def measure_load(port: int, connections: int, message: Message, seconds: float, folder: Path) -> list[float]:
    """Requests per second, the median and 99th percentile of their latencies in seconds, and how many failed."""
    body = folder / "body"
    body.write_bytes(message.body)
    environment = {**os.environ, "BODY": str(body), "TYPE": message.content_type}
    if message.json_length:
        environment["JSON_LENGTH"] = str(message.json_length)
    url, script = f"http://127.0.0.1:{port}{message.path}", str(SERVERS / "post.lua")
    for duration in (1, max(1, round(seconds))):  # a second to warm up
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--latency", "-s", script, url]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout
    measured = [line for line in output.splitlines() if line.startswith("measured")]
    return [float(number) for number in measured[0].split()[1:]] if measured else [0.0] * 4  # the server is gone


def measure_library(image: np.ndarray[Any, Any], seconds: float) -> list[float]:
    """The same numbers for calls of the library, in this process."""
    from lockstep import Classifier

    classifier, latencies, batch = Classifier(MODEL), [], np.ascontiguousarray(image[None])
    end = time.perf_counter() + seconds + 0.5  # half a second to warm up
    while (started := time.perf_counter()) < end:
        classifier.predict(batch)
        if started > end - seconds:
            latencies.append(time.perf_counter() - started)
    return [len(latencies) / seconds, *np.quantile(latencies, [0.5, 0.99]).tolist(), 0]


if __name__ == "__main__":
    app()
