"""Sets up the device and the threads of a stage, and records what the bytes of its outputs depend on here."""

import ctypes
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from stages.core.arithmetic import check_portable_env, describe_cpu, why_cpu_not_portable
from stages.core.command import echo
from stages.core.errors import StageError
from stages.core.params import Machine

# Options of glibc's mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
MALLOC_OPTIONS = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}
# Another version of one of these may change the bytes of the outputs.
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "matplotlib", "onnx", "onnxscript")


def prepare_device(machine: Machine) -> torch.device:
    """Select the device of the section; set its number of threads and deterministic algorithms."""
    tune_allocator()
    # The momentum of weights that no longer change falls below 1e-38, where CPUs are slow. Later threads inherit this.
    torch.set_flush_denormal(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic cuBLAS
    torch.set_num_threads(machine.threads)
    threadpool_limits(machine.threads)  # libraries that are loaded; libraries loaded later read the variables below
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(machine.threads))
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) would import torch's compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it is never read
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # full float32
    device = select_device(machine)
    if obstacle := why_not_portable(machine, device):
        echo(
            f"machine.arithmetic: portable is not possible here, since {obstacle}: falling back to native arithmetic, "
            "whose bytes may differ elsewhere"
        )
    elif machine.arithmetic == "portable":
        check_portable_env()
    return device


def tune_allocator() -> None:
    """Let glibc keep freed memory: every step allocates the same megabytes, and each new page costs a page fault."""
    libc = ctypes.CDLL(None)
    for option, size in MALLOC_OPTIONS.items() if hasattr(libc, "mallopt") else ():
        libc.mallopt(option, size)


def select_device(machine: Machine) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = machine.device if machine.device != "auto" else next(name for name in available if available[name])
    if not available[name]:
        raise StageError(f"machine.device: {name} is not available here; set it to auto or cpu")
    if name == "cuda":
        local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= count:
            raise StageError(f"each process needs a GPU of its own, and there are {count}: lower train.processes")
        torch.cuda.set_device(local_rank)
    return torch.device(name)


def why_not_portable(machine: Machine, device: torch.device) -> str:
    """Why portable arithmetic is not possible although the section asks for it; empty if it is."""
    if machine.arithmetic == "native":
        return ""
    return why_cpu_not_portable() or ("" if device.type == "cpu" else f"the device is {device.type}")


def environment_record(machine: Machine, device: torch.device) -> dict[str, str | int | dict[str, str]]:
    """What the bytes depend on besides params, code and data: two machines with equal records give the same bytes."""
    obstacle = why_not_portable(machine, device)
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
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro train`") from None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise StageError(f"{path}: not train's record of the machine; run `dvc repro -f train`")
    return record
