"""The machine that a stage computes on: its device and threads set, and what of it decides the bytes."""

import ctypes
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from stages.core.arithmetic import check_variables, cpu_obstacle, describe_cpu
from stages.core.command import echo
from stages.core.errors import StageError
from stages.core.params import Machine

# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
KEEP = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}
# A change of one of these may change the bytes of what the stages write.
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "matplotlib", "onnx", "onnxscript")


def prepare_device(machine: Machine) -> torch.device:
    """The device that the section names, with `threads` threads and deterministic algorithms."""
    tune_allocator()
    # What no longer learns leaves momentum below 1e-38, which processors are slow with; threads to come inherit it.
    torch.set_flush_denormal(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it where it is to be deterministic
    torch.set_num_threads(machine.threads)
    threadpool_limits(machine.threads)  # of the libraries that are loaded; those to come read the environment
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(machine.threads))
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True), which imports a compiler first
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = machine.device if machine.device != "auto" else next(name for name in there if there[name])
    if not there[name]:
        raise StageError(f"machine.device: {name} is not available here; set it to auto or cpu")
    if name == "cuda":
        own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= count:
            raise StageError(f"each process takes a GPU of its own, and there are {count}: lower train.processes")
        torch.cuda.set_device(own)
    device = torch.device(name)
    if obstacle := portable_obstacle(machine, device):
        echo(
            f"machine.arithmetic: portable is not possible here, since {obstacle}: falling back to native arithmetic, "
            "whose bytes may differ elsewhere"
        )
    elif machine.arithmetic == "portable":
        check_variables()
    return device


def portable_obstacle(machine: Machine, device: torch.device) -> str:
    """Why portable arithmetic, where it is asked for, cannot be had; empty if it can."""
    if machine.arithmetic == "native":
        return ""
    return cpu_obstacle() or ("" if device.type == "cpu" else f"the device is {device.type}")


def tune_allocator() -> None:
    """Have glibc keep what is freed: each step asks for the same megabytes again, and every new page costs a fault."""
    libc = ctypes.CDLL(None)
    for option, size in KEEP.items() if hasattr(libc, "mallopt") else ():
        libc.mallopt(option, size)


def environment_record(machine: Machine, device: torch.device) -> dict[str, str | int | dict[str, str]]:
    """What decides the bytes beside params, code and data: equal on two machines that promise the same bytes."""
    obstacle = portable_obstacle(machine, device)
    native = {"cpu": describe_cpu(), "instruction_set": torch.backends.cpu.get_cpu_capability()}
    portable = machine.arithmetic == "portable" and not obstacle
    return {
        "arithmetic": "portable" if portable else "native",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({} if portable else native),
        **({"not_portable": obstacle} if obstacle else {}),
        "threads": machine.threads,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def read_environment(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro train`") from None
    except ValueError as error:
        raise StageError(f"{path}: not train's record of the machine ({error}); run `dvc repro -f train`") from None
    if not isinstance(content, dict):
        raise StageError(f"{path}: not train's record of the machine; run `dvc repro -f train`")
    return content
