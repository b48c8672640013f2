"""The ONNX file in ONNX Runtime compared with the network in PyTorch, eager and compiled: latency and throughput.

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

from benchmarks.machine import ROOT, Results, describe_machine
from stages.network.weights import read_weights

BATCH_SIZES = (1, 64, 1000)
SECONDS = 1.0  # of each measurement
Predict = Callable[[np.ndarray], object]


def measure(*, rounds: int = 10, threads: int = 2, model: Path = ROOT / "data/model/model.onnx") -> None:
    """Print medians of all rounds; each round measures every engine with every batch size once."""
    torch.set_num_threads(threads)
    results = Results("inference", describe_machine(threads))
    network, header = read_weights(model.with_name("weights.safetensors"))
    shape = (max(BATCH_SIZES), header.channels, header.size, header.size)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    engines = {
        "ONNX Runtime, 1 thread": onnxruntime_predict(model, 1),
        f"ONNX Runtime, {threads} threads": onnxruntime_predict(model, threads),
        "PyTorch eager": torch_predict(network),
        "PyTorch compiled": torch_predict(torch.compile(network, dynamic=True)),
    }
    key = {"model": hashlib.sha256(model.read_bytes()).hexdigest(), "onnxruntime": onnxruntime.__version__}
    rows: dict[tuple[str, int], list[dict[str, float]]] = {
        (engine, size): [] for engine in engines for size in BATCH_SIZES
    }
    for number in range(rounds):
        for (engine, size), measurements in rows.items():
            measure_engine = partial(measure_calls, engines[engine], images[:size])
            measurements.append(results.once(measure_engine, way=engine, batch=size, round=number, **key))
    print(f"on {results.machine}; onnxruntime {onnxruntime.__version__}; medians of {rounds} rounds\n")
    sizes = " | ".join(f"by {size}" for size in BATCH_SIZES[1:])
    print(f"| | batch 1: p50 | p99 | images a second, one by one | {sizes} |")
    print("|---|---|---|---|" + "---|" * (len(BATCH_SIZES) - 1))
    for engine in engines:
        p50, p99 = (1e6 * median(row[quantile] for row in rows[engine, 1]) for quantile in ("p50", "p99"))
        throughput = [median(row["images_a_second"] for row in rows[engine, size]) for size in BATCH_SIZES]
        cells = " | ".join(f"{images_a_second:,.0f}" for images_a_second in throughput)
        print(f"| {engine} | {p50:.0f} µs | {p99:.0f} µs | {cells} |")


def onnxruntime_predict(model: Path, threads: int) -> Predict:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})


def torch_predict(network: Callable[[torch.Tensor], torch.Tensor]) -> Predict:
    @torch.inference_mode()
    def predict(images: np.ndarray) -> object:
        return network(torch.from_numpy(images)).softmax(1).numpy()

    return predict


def measure_calls(predict: Predict, images: np.ndarray) -> dict[str, float]:
    """Quantiles of the seconds of a call, and images a second."""
    time_calls(predict, images, SECONDS / 5)  # to warm up
    seconds = time_calls(predict, images, SECONDS)
    p50, p99 = (float(quantile) for quantile in np.quantile(seconds, (0.5, 0.99)))
    return {"p50": p50, "p99": p99, "images_a_second": len(images) * len(seconds) / float(seconds.sum())}


def time_calls(predict: Predict, images: np.ndarray, duration: float) -> np.ndarray:
    """The seconds of each call, of as many calls as fit into the duration and at least three."""
    seconds: list[float] = []
    end = time.perf_counter() + duration
    while (started := time.perf_counter()) < end or len(seconds) < 3:
        predict(images)
        seconds.append(time.perf_counter() - started)
    return np.array(seconds)


if __name__ == "__main__":
    app = App(name="python -m benchmarks.inference", default_command=measure, result_action="return_none")
    app()
