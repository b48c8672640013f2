"""The machine that a stage computes on: its device and threads set, and what of it decides the bytes."""

import importlib.metadata
import os

import torch
from threadpoolctl import threadpool_limits

from stages.common.params import Machine
from stages.common.problem import Problem

# A change of one of these may change the bytes of what the stages write.
LIBRARIES = ("torch", "numpy", "onnx", "onnxscript", "scikit-learn")


def prepare(machine: Machine) -> torch.device:
    """The device that the section names, with `threads` threads and deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it where it is to be deterministic
    torch.set_num_threads(machine.threads)
    threadpool_limits(machine.threads)  # of the libraries that are loaded; those to come read the environment
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(machine.threads))
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = machine.device if machine.device != "auto" else next(name for name in there if there[name])
    if not there[name]:
        raise Problem(f"machine.device: {name} is not available here; set it to auto or cpu")
    return torch.device(name)


def record(device: torch.device, threads: int) -> dict[str, str | int | dict[str, str]]:
    """What decides the bytes beside params, code and data."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
