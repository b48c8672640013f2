"""Checks of the environment and the machine: Python, packages, torch, arithmetic, memory, disk and clock."""

import contextlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.doctor.findings import Finding, Project, SkipError, Status, name_some, setup_fix
from flows.doctor.probe import free_bytes, last_line, run, run_program
from flows.environment import PROJECT_BIN, environment
from flows.errors import FlowError

OLDEST_PYTHON = (3, 11)
IMPORT_TIMEOUT = 25.0  # seconds; torch on a cold disk
MIN_MEMORY, MIN_OPEN_FILES = 2.0, 1024  # GB
CLOCK_TOLERANCE = 60.0  # seconds
MAX_FILES = 20_000  # whose times are looked at
HOME = "home"
CGROUP = Path("/sys/fs/cgroup")
# Programs for the project's Python, which may be another one than that of this process. Each prints JSON.
PYTHON_PROGRAM = "import json, sys; print(json.dumps({'version': sys.version_info[:3], 'prefix': sys.prefix}))"
PACKAGES_PROGRAM = """
import json, re, tomllib
from importlib.metadata import distributions
from pathlib import Path
try:
    from packaging.requirements import Requirement
except ImportError:
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        Requirement = None
def key(name): return re.sub("[-_.]+", "-", name).lower()
installed = {key(one.name): one.version for one in distributions() if one.name}
lines = [line for line in Path("requirements.lock").read_text().splitlines() if "==" in line]
ranges = []
if Requirement:
    locked = {key(one.name): str(one.specifier)[2:] for one in map(Requirement, lines)
              if not one.marker or one.marker.evaluate()}
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    ranges = map(Requirement, project["dependencies"] + project["optional-dependencies"]["pipeline"])
else:
    locked = dict(line.split("==") for line in lines if ";" not in line)
print(json.dumps({
    "count": len(locked),
    "missing": sorted(name for name in locked if name not in installed),
    "different": {name: [installed[name], version] for name, version in locked.items()
                  if name in installed and installed[name].partition("+")[0] != version},
    "outside": {key(one.name): str(one.specifier) for one in ranges
                if (have := installed.get(key(one.name))) and not one.specifier.contains(have, prereleases=True)},
}))
"""
MACHINE_PROGRAM = """
import contextlib, importlib, io, json, runpy, sys
def say(**facts): print(json.dumps(facts), flush=True)
def attempt(name, report):
    say(importing=name)
    try:
        say(**report(importlib.import_module(name)))
    except Exception as error:
        say(**{name + " error": f"{type(error).__name__}: {error}"[:300]})
attempt("stages.core.arithmetic", lambda it: {"portable_env": it.PORTABLE_ENV, "obstacle": it.why_cpu_not_portable()})
attempt("onnxruntime", lambda it: {"onnxruntime": it.__version__, "providers": it.get_available_providers()})
attempt("torch", lambda it: {"torch": it.__version__, "devices": [
    *(["cuda"] if it.cuda.is_available() else []), *(["mps"] if it.backends.mps.is_available() else []), "cpu"]})
def check_params(runpy):
    sys.argv, errors, status = ["stages", "--params", "params.yaml"], io.StringIO(), 0
    with contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("stages", run_name="__main__")  # as `python -m stages`, without importing torch again
        except SystemExit as end:
            status = end.code
    return {"params_errors": errors.getvalue().splitlines() if status else []}
attempt("runpy", check_params)
say(importing="")
"""


def check_python(project: Project) -> Iterator[Finding]:
    fix = "rm -rf .venv; make setup"
    if PROJECT_BIN.is_dir() and not (PROJECT_BIN / "python").exists():
        yield Finding("error", f"{PROJECT_BIN / 'python'} is missing, or links to a Python that is gone", fix)
        return
    try:
        facts, result = run_program(PYTHON_PROGRAM, project.root, 10)
    except SkipError as error:
        yield Finding("error", str(error), "make setup && . .venv/bin/activate")
        return
    version = ".".join(map(str, facts.get("version", ())))
    if not facts:
        yield Finding("error", f"the environment's Python does not start: {last_line(result)}", fix)
    elif tuple(facts["version"]) < OLDEST_PYTHON:
        yield Finding("error", f"Python {version} is too old: 3.11 or later is needed", "make PYTHON=/path/to/it setup")
    else:
        yield Finding("ok", f"{version} in {facts['prefix']}")


def check_commands(_: Project) -> Iterator[Finding]:
    """The commands that flows start. Moving the project breaks those of .venv, which name their Python by its path."""
    path, wrong = environment()["PATH"], False
    for name, fix in (
        ("git", "install git"),
        ("dvc", "rm -rf .venv; make setup"),
        ("prefect", "rm -rf .venv; make setup"),
    ):
        file = shutil.which(name, path=path)
        interpreter = first_interpreter(Path(file)) if file else ""
        if not file or not (interpreter == "" or Path(interpreter).exists()):
            reason = f"{file} starts {interpreter}, which is gone" if file else "not found"
            yield Finding("error", f"{name}: {reason}", fix)
            wrong = True
    if not wrong:
        yield Finding("ok", "git, dvc and prefect are there")


def first_interpreter(file: Path) -> str:
    """The program in the first line of a script; empty for other files."""
    with file.open("rb") as content:
        line = content.readline(1000)
    return line[2:].decode(errors="replace").split()[0] if line.startswith(b"#!") else ""


def check_packages(project: Project) -> Iterator[Finding]:
    for name in ("requirements.lock", "pyproject.toml"):
        if not (project.root / name).exists():
            raise SkipError(f"there is no {name}")
    facts, result = run_program(PACKAGES_PROGRAM, project.root, 20)
    fix = setup_fix(project.root)
    if "count" not in facts:
        yield Finding("error", f"the installed packages cannot be listed: {last_line(result)}", fix)
        return
    different = {name: f"{name} {have} instead of {want}" for name, (have, want) in facts["different"].items()}
    outside = {name: f"{different.get(name, name)} (pyproject.toml: {want})" for name, want in facts["outside"].items()}
    others = [text for name, text in different.items() if name not in outside]
    if facts["missing"]:
        yield Finding("error", f"{len(facts['missing'])} not installed: {name_some(facts['missing'])}", fix)
    if outside:
        yield Finding("error", f"versions that do not work: {name_some(outside.values())}", fix)
    if others:
        yield Finding("warning", f"other versions than the tested ones, so bytes may differ: {name_some(others)}", fix)
    if not facts["missing"] and not different and not outside:
        yield Finding("ok", f"{facts['count']} as in requirements.lock")


def machine_facts(project: Project) -> dict[str, Any]:
    """What MACHINE_PROGRAM finds: one process for several checks, since importing torch takes seconds."""

    def probe() -> dict[str, Any]:
        facts, result = run_program(MACHINE_PROGRAM, project.root, IMPORT_TIMEOUT)
        if name := facts.get("importing"):  # the last one, if the process did not come further
            reason = (
                f"not imported within {IMPORT_TIMEOUT:.0f} s" if result.timed_out else f"crashes: {last_line(result)}"
            )
            facts[f"{name} error"] = reason
        return facts

    facts: dict[str, Any] = project.facts.get("machine", probe)
    return facts


def check_torch(project: Project) -> Iterator[Finding]:
    facts = machine_facts(project)
    if "torch" not in facts:
        reason = facts.get("torch error") or facts.get("onnxruntime error") or "Python does not start"
        yield Finding("error", f"torch cannot be imported: {reason}", setup_fix(project.root))
        return
    devices, wanted = facts["devices"], project.params().get("machine.device")
    if wanted not in ("auto", *devices):
        yield Finding(
            "error",
            f"machine.device is {wanted}, which is not available: {', '.join(devices)}",
            "set machine.device to auto or cpu in params.yaml",
        )
    else:
        yield Finding(
            "ok", f"{facts['torch']}; machine.device {wanted} is {devices[0] if wanted == 'auto' else wanted}"
        )


def check_arithmetic(project: Project) -> Iterator[Finding]:
    params, facts = project.params(), machine_facts(project)
    if "portable_env" not in facts:
        raise SkipError(facts.get("stages.core.arithmetic error", "the stages cannot be imported"))
    if params.get("machine.arithmetic") != "portable":
        yield Finding("ok", "native: the same bytes only on this model of CPU")
        return
    device = params.get("machine.device")
    used = facts.get("devices", ["cpu"])[0] if device == "auto" else device
    obstacle = facts["obstacle"] or ("" if used == "cpu" else f"the device is {used}")
    if obstacle:
        advice = "set machine.device to cpu" if not facts["obstacle"] else "set machine.arithmetic to native"
        yield Finding(
            "warning", f"bytes are not promised: {obstacle}; stages compute natively", f"{advice} in params.yaml"
        )
        return
    set_here = {name: os.environ.get(name, value) for name, value in facts["portable_env"].items()}
    wrong = [name for name, value in facts["portable_env"].items() if set_here[name].casefold() != value.casefold()]
    for name in wrong:
        yield Finding("error", f"the environment sets {name}={set_here[name]}, so stages stop", f"unset {name}")
    if not wrong:
        yield Finding("ok", "portable: the same bytes on every x86-64 CPU with AVX2")


def usable_cores() -> float:
    """The cores that this process may use, by its affinity and its control group."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = read_text(CGROUP / "cpu.max").partition(" ")
    return min(count, int(quota) / int(period)) if quota.isdecimal() else count


def check_threads(project: Project) -> Iterator[Finding]:
    threads, cores = project.params().get("machine.threads"), usable_cores()
    if isinstance(threads, int) and threads > cores:
        message = f"machine.threads is {threads}, and there are {cores:g} cores: training is slow"
        fix = f"more cores; or machine.threads {max(1, int(cores))} in params.yaml, which changes the bytes"
        yield Finding("warning", message, fix)
    else:
        yield Finding("ok", f"{threads} of {cores:g} cores")


def check_memory(_: Project) -> Iterator[Finding]:
    limits = {"the machine": memory_available(), "the control group": cgroup_memory_left()}
    where, left = min(((name, value) for name, value in limits.items() if value is not None), key=lambda pair: pair[1])
    if left < MIN_MEMORY * 1e9:
        fix = "end other programs, or raise the container's limit"
        yield Finding("warning", f"{left / 1e9:.1f} GB left in {where}: stages may be killed", fix)
    else:
        yield Finding("ok", f"{left / 1e9:.1f} GB left")


def memory_available() -> int:
    for line in read_text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SkipError("this system has no /proc/meminfo")


def cgroup_memory_left() -> int | None:
    limit, used = read_text(CGROUP / "memory.max"), read_text(CGROUP / "memory.current")
    return int(limit) - int(used) if limit.isdecimal() and used.isdecimal() else None


def read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def check_open_files(_: Project) -> Iterator[Finding]:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES:
        yield Finding(
            "warning", f"at most {limit}: a server may run out of them", f"ulimit -n {max(limit, min(hard, 4096))}"
        )
    else:
        yield Finding("ok", f"at most {limit}")


def check_disk(project: Project) -> Iterator[Finding]:
    from flows.doctor.data import cache_folder

    folders = {"project": project.root, "temporary files": Path(tempfile.gettempdir()), HOME: Path.home()}
    with contextlib.suppress(SkipError, FlowError):
        folders["DVC's cache"] = nearest_existing(cache_folder(project))
    enough: dict[str, float] = {}
    for name, folder in folders.items():
        status: Status = "warning" if name == HOME else "error"  # there Prefect keeps its history
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            fix = f"ls -ld '{folder}' says whose it is; " + ("export HOME=…" if name == HOME else "chown or chmod it")
            yield Finding(status, f"{folder} ({name}) cannot be written", fix)
        elif (free := free_bytes(folder) / 1e9) < project.min_free:
            yield Finding(status, f"only {free:.2f} GB free in {folder} ({name})", f"du -xsh '{folder}'/*")
        else:
            enough[name] = free
    if len(enough) == len(folders):
        yield Finding("ok", f"GB free: {', '.join(f'{name} {free:.0f}' for name, free in enough.items())}")


def nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_clock(project: Project) -> Iterator[Finding]:
    now = time.time()
    result = run(["git", "log", "-1", "--format=%ct"], project.root, 10)
    commit_time = float(next((line for line in result.lines if line.isdecimal()), 0))
    if commit_time > now + CLOCK_TOLERANCE:
        ahead = (commit_time - now) / 60
        yield Finding(
            "warning", f"the clock is {ahead:.0f} minutes before the last commit", "set the clock: timedatectl"
        )
    future = [path for path, changed in file_times(project.root) if changed > now + CLOCK_TOLERANCE]
    if future:
        names = [project.relative(path) for path in future]
        message = f"{len(names)} files are from the future, so changes to them may be missed: {name_some(names)}"
        yield Finding("warning", message, f"touch {' '.join(names[:10])}")
    elif commit_time <= now + CLOCK_TOLERANCE:
        yield Finding("ok", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))


def file_times(root: Path) -> Iterator[tuple[Path, float]]:
    """The files of the project and their times; of large data sets the first MAX_FILES."""
    count = 0
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name != "__pycache__"]
        for file in files:
            count += 1
            if count > MAX_FILES:
                return
            try:
                yield Path(folder, file), Path(folder, file).lstat().st_mtime
            except OSError:
                continue
