"""Selects the arithmetic: portable gives the same bytes on every x86-64 CPU with AVX2, native uses all that a CPU has.

Libraries choose their kernels by the CPU: MKL by its vendor; oneDNN, OpenBLAS and torch by its instruction sets. The
variables below fix that choice. Libraries read them when they are loaded, so stages/__init__.py sets them before.
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

PORTABLE_ENV = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
# How often a waiting thread of GNU OpenMP spins before it sleeps. The default, 300,000, starves other processes.
OPENMP_SPIN = {"GOMP_SPINCOUNT": "1000"}
CPUINFO = Path("/proc/cpuinfo")
MODEL_FIELDS = (
    "cpu family",
    "model",
    "CPU implementer",
    "CPU part",
    "CPU variant",
    "CPU revision",
)  # the last four: Arm


def is_stage_command(command: Sequence[str]) -> bool:
    """Whether the command runs a stage, rather than a program that only imports one."""
    return any(flag == "-m" and module.startswith("stages.") for flag, module in itertools.pairwise(command))


def set_arithmetic_env(command: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Set the variables as the params file of the command asks, except those that the user has set.

    Errors in the params file are left to the stage, which reports them.
    """
    variables = OPENMP_SPIN | (PORTABLE_ENV if wants_portable(command) else {})
    for name, value in variables.items():
        environment.setdefault(name, value)


def wants_portable(command: Sequence[str]) -> bool:
    params = flag_value("--params", command)
    try:
        return load_params(Path(params))["machine"]["arithmetic"] == "portable" and not why_cpu_not_portable()
    except (StageError, KeyError, TypeError, OSError):
        return False


def flag_value(flag: str, command: Sequence[str]) -> str:
    for word, following in itertools.pairwise([*command, ""]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""


def check_portable_env() -> None:
    """Raise an error if a variable of portable arithmetic is missing or has another value."""
    for name, value in PORTABLE_ENV.items():
        actual, wanted = os.environ.get(name), f"machine.arithmetic: portable needs {name}={value}"
        if actual is None:
            raise StageError(f"{wanted} before torch is imported: run the stage as a command, or set it")
        if actual.casefold() != value.casefold():
            advice = "unset it, or set machine.arithmetic to native"
            raise StageError(f"{wanted}, but the environment sets it to {actual}: {advice}")


def why_cpu_not_portable() -> str:
    """Why this machine cannot compute portably; empty if it can."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux":
        return f"the system is {system}, not Linux"
    if machine not in ("x86_64", "AMD64"):
        return f"the CPU is {machine}, not x86-64"
    return "" if "avx2" in cpu_fields().get("flags", "").split() else "the CPU has no AVX2"


def describe_cpu() -> str:
    """The vendor, model and features of the CPU: the bytes of native arithmetic depend on them."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        brand = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
        return brand or platform.machine()
    fields = cpu_fields()
    parts = [fields[key] for key in ("vendor_id", "model name") if key in fields]
    parts += [f"{key} {fields[key]}" for key in MODEL_FIELDS if key in fields]
    if features := fields.get("flags") or fields.get("Features"):  # a virtual machine may hide some
        parts.append(f"features {hashlib.sha256(features.encode()).hexdigest()[:8]}")
    return ", ".join(parts) or platform.machine()


@cache
def cpu_fields() -> dict[str, str]:
    """The fields of the first CPU in /proc/cpuinfo; empty on other systems than Linux."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
