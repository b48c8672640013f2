"""The exported file in ONNX Runtime beside the network in PyTorch, eager and compiled: latency and throughput, in turn.

make bench-onnx
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from cyclopts import App

from benchmarks.machine import ROOT, Results, describe
from stages.network.weights import read_weights

BATCHES = (1, 64, 1000)
SECONDS = 1.0  # of each measurement


def measure(*, rounds: int = 10, threads: int = 2, model: Path = ROOT / "data/model/model.onnx") -> None:
    """Print medians of all rounds; each round measures every way once."""
    torch.set_num_threads(threads)
    results = Results("inference", describe(threads))
    network, _ = read_weights(model.with_name("weights.safetensors"))
    image = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *next(iter(shape(model)))), dtype=np.uint8)
    ways = {
        "ONNX Runtime, 1 thread": file(model, 1),
        f"ONNX Runtime, {threads} threads": file(model, threads),
        "PyTorch eager": eager(network),
        "PyTorch compiled": eager(torch.compile(network, dynamic=True)),
    }
    key = {"model": hashlib.sha256(model.read_bytes()).hexdigest(), "onnxruntime": onnxruntime.__version__}
    rows: dict[tuple[str, int], list[dict[str, float]]] = {(way, batch): [] for way in ways for batch in BATCHES}
    for turn in range(rounds):
        for (way, batch), seen in rows.items():
            once = partial(timed, ways[way], image[:batch])
            seen.append(results.once(once, way=way, batch=batch, round=turn, **key))
    print(f"on {results.machine}; onnxruntime {onnxruntime.__version__}; medians of {rounds} rounds\n")
    print("| | batch 1: p50 | p99 | images a second, one by one | " + " | ".join(f"by {n}" for n in BATCHES[1:]) + " |")
    print("|---|---|---|---|" + "---|" * (len(BATCHES) - 1))
    for way in ways:
        p50, p99 = (1e6 * median(row[share] for row in rows[way, 1]) for share in ("p50", "p99"))
        a_second = [median(row["images_a_second"] for row in rows[way, batch]) for batch in BATCHES]
        print(f"| {way} | {p50:.0f} µs | {p99:.0f} µs | " + " | ".join(f"{each:,.0f}" for each in a_second) + " |")


def shape(model: Path) -> list[tuple[int, ...]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [tuple(session.get_inputs()[0].shape[1:])]


def file(model: Path, threads: int) -> Callable[[np.ndarray], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})


def eager(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], object]:
    @torch.inference_mode()
    def run(images: np.ndarray) -> object:
        return network(torch.from_numpy(images)).softmax(1).numpy()

    return run


def timed(run: Callable[[np.ndarray], object], images: np.ndarray) -> dict[str, float]:
    """Seconds that a call takes, and images a second."""
    calls(run, images, SECONDS / 5)  # to warm up
    times = calls(run, images, SECONDS)
    p50, p99 = (float(each) for each in np.quantile(times, (0.5, 0.99)))
    return {"p50": p50, "p99": p99, "images_a_second": len(images) * len(times) / float(times.sum())}


def calls(run: Callable[[np.ndarray], object], images: np.ndarray, seconds: float) -> np.ndarray:
    """How long each call took."""
    times, end = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < end or len(times) < 3:
        run(images)
        times.append(time.perf_counter() - started)
    return np.array(times)


if __name__ == "__main__":
    app = App(name="python -m benchmarks.inference", default_command=measure, result_action="return_none")
    app()
