"""How a process computes: portable arithmetic, the same bytes on every x86-64 CPU with AVX2, or native, the CPU's best.

MKL chooses its kernels by the CPU's maker, oneDNN, OpenBLAS and torch by its instruction sets. They read these
variables when they load, so these are set before torch or numpy is imported: stages/__init__.py sees to it.
"""

import hashlib
import itertools
import os
import platform
import subprocess
from collections.abc import MutableMapping, Sequence
from functools import cache
from pathlib import Path

from stages.core.errors import StageError
from stages.core.params import load_params

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
# GNU OpenMP's threads spin this often before they sleep. Its default, 300,000 times, starves other processes.
OPENMP_SPIN = {"GOMP_SPINCOUNT": "1000"}
CPUINFO = Path("/proc/cpuinfo")
MODEL_FIELDS = ("cpu family", "model", "CPU implementer", "CPU part", "CPU variant", "CPU revision")  # the last for Arm


def is_stage_command(command: Sequence[str]) -> bool:
    """Whether this is the command of a stage; a program that merely imports the stages is left alone."""
    return any(before == "-m" and word.startswith("stages.") for before, word in itertools.pairwise(command))


def configure_environment(command: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Set the variables for the stage that the command runs, as its params file says; a person's own settings stay.

    Errors in the file are reported by the stage itself.
    """
    file = flag_value("--params", command)
    portable = file is not None and wants_portable(Path(file))
    for name, value in {**OPENMP_SPIN, **(PORTABLE if portable else {})}.items():
        environment.setdefault(name, value)


def flag_value(flag: str, command: Sequence[str]) -> str | None:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def wants_portable(params: Path) -> bool:
    try:
        return load_params(params)["machine"]["arithmetic"] == "portable" and not cpu_obstacle()
    except (StageError, KeyError, TypeError, OSError):
        return False


def check_variables() -> None:
    """Raise if a variable of portable arithmetic is missing or has another value: the user decides which to change."""
    for name, value in PORTABLE.items():
        found = os.environ.get(name)
        if found is None:
            raise StageError(
                f"machine.arithmetic: portable needs {name}={value} before torch is imported: run the stage as a "
                "command, or set it"
            )
        if found.casefold() != value.casefold():
            raise StageError(
                f"machine.arithmetic: portable needs {name}={value}, but the environment sets it to {found}: "
                "unset it, or set machine.arithmetic to native"
            )


def cpu_obstacle() -> str:
    """Why this machine's CPU cannot do portable arithmetic; empty if it can."""
    return find_obstacle(platform.system(), platform.machine(), cpu_fields().get("flags", ""))


def find_obstacle(system: str, machine: str, flags: str) -> str:
    if system != "Linux":
        return f"the system is {system}, not Linux"
    if machine not in ("x86_64", "AMD64"):
        return f"the CPU is {machine}, not x86-64"
    if "avx2" not in flags.split():
        return "the CPU has no AVX2"
    return ""


def describe_cpu() -> str:
    """The CPU's maker, model and features, which decide the bytes of native arithmetic."""
    fields = cpu_fields()
    parts = [fields[key] for key in ("vendor_id", "model name") if key in fields]
    parts += [f"{key} {fields[key]}" for key in MODEL_FIELDS if key in fields]
    features = fields.get("flags") or fields.get("Features")  # a virtual machine may hide some
    if features:
        parts.append(f"features {hashlib.sha256(features.encode()).hexdigest()[:8]}")
    return ", ".join(parts) or mac_cpu() or platform.machine()


def mac_cpu() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    if platform.system() != "Darwin":
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


@cache
def cpu_fields() -> dict[str, str]:
    """What Linux says of the first CPU."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
