"""`make doctor`: each fault is found, with the command that mends it; in a healthy project nothing is wrong."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import psutil
import pytest
from conftest import ROOT
from PIL import Image
from repositories import command_environment, commit_all, create_project, run_command, run_dvc
from toys import free_port, prefect_server, wait_until

from flows.dvc.dag import read_dag
from flows.dvc.params_file import set_param

PARAMS = {"download.dataset": "digits", "machine.device": "cpu", "machine.threads": 1}
SPLITS = "data/splits/train-images.npy"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first two stages have run, committed, with the published model. Copy it; do not change it."""
    project = create_project(tmp_path_factory.mktemp("healthy") / "project", PARAMS)
    run_dvc(project, "repro", "-q", "preprocess")
    commit_all(project)
    (project / "data" / "model").mkdir(exist_ok=True)
    for name in ("model.onnx", "golden.json", "certificate.json", "CARD.md"):
        shutil.copyfile(ROOT / "lockstep" / "published" / name, project / "data" / "model" / name)
    return project


@pytest.fixture
def patient(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "a project", symlinks=True))


def doctor_environment(project: Path, **variables: str) -> dict[str, str]:
    """No server is set, and Prefect's folder is a new one."""
    prefect = {"PREFECT_API_URL": "", "PREFECT_HOME": str(project.parent / "prefect")}
    return {**command_environment(), "no_proxy": "127.0.0.1", **prefect, **variables}


def examine(project: Path, *arguments: str, **variables: str) -> tuple[int, list[dict[str, str]]]:
    """The exit status of the doctor, and what it has found."""
    command = [sys.executable, "-m", "flows.doctor", "--json", *arguments]
    result = subprocess.run(
        command, cwd=project, env=doctor_environment(project, **variables), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    findings = json.loads(result.stdout)
    for finding in findings:
        assert set(finding) == {"check", "status", "message", "fix"}
        assert bool(finding["fix"]) == (finding["status"] in ("warning", "error")), finding
    assert result.returncode == any(finding["status"] == "error" for finding in findings)
    return result.returncode, findings


def find_problem(project: Path, check: str, *arguments: str, **variables: str) -> dict[str, str]:
    """The only warning or error of the check."""
    _, findings = examine(project, check, *arguments, **variables)
    (problem,) = [finding for finding in findings if finding["status"] in ("warning", "error")]
    return problem


def test_a_healthy_project_has_nothing_wrong(patient: Path) -> None:
    status, findings = examine(patient)
    assert status == 0, [finding for finding in findings if finding["status"] == "error"]
    found = {finding["check"]: finding for finding in findings}
    assert found["outputs"]["message"].startswith("2 of 6 stages are up to date; stale: train")
    assert "objects of dvc.lock are intact" in found["cache"]["message"]
    assert "not here" not in found["cache"]["message"]
    assert found["model"]["message"] == "data/model/model.onnx is proven"
    skipped = {finding["check"] for finding in findings if finding["status"] == "skipped"}
    assert skipped <= {"workers", "database"}
    assert run_command(patient, "git", "status", "--porcelain", "--untracked-files=no").stdout == ""


def test_a_new_clone_has_nothing_wrong(tmp_path: Path) -> None:
    project = create_project(tmp_path / "new", PARAMS)
    status, findings = examine(project, "pipeline", "data-set", "dvc.lock", "outputs", "cache", "model", "locks")
    assert (status, {finding["status"] for finding in findings}) == (0, {"ok"})


class Fault(NamedTuple):
    check: str
    status: str
    fix: str  # part of it
    message: str  # part of it
    cause: Callable[[Path], dict[str, str] | None]  # breaks the project; may return environment variables
    arguments: tuple[str, ...] = ()
    is_mended: bool = True  # by the fix, which the test runs


def put_conflict(name: str) -> Callable[[Path], None]:
    def cause(project: Path) -> None:
        text = (project / name).read_text()
        first, rest = text.split("\n", 1)
        (project / name).write_text(f"<<<<<<< HEAD\n{first}\n=======\n{first}\n>>>>>>> other\n{rest}")

    return cause


def set_value(name: str, value: object) -> Callable[[Path], None]:
    return lambda project: set_param(project / "params.yaml", name, value)


def replace_in(name: str, old: str, new: str) -> Callable[[Path], None]:
    def cause(project: Path) -> None:
        text = (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new, 1))

    return cause


def truncate(name: str, length: int) -> Callable[[Path], None]:
    return lambda project: os.truncate(project / name, length)


def write(name: str, text: str) -> Callable[[Path], None]:
    def cause(project: Path) -> None:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text, errors="surrogateescape")

    return cause


def flip_bit_in_cache(project: Path) -> None:
    file = max((project / ".dvc" / "cache" / "files").rglob("*"), key=lambda path: path.stat().st_size)
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def leave_rwlock(project: Path, pid: int | None = None) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    entry = {"pid": pid or child.pid, "cmd": "dvc repro"}
    content = {"write": {str(project / "data" / "splits"): entry}, "read": {}}
    write(".dvc/tmp/rwlock", json.dumps(content))(project)


def forget_author(project: Path) -> dict[str, str]:
    for words in ("--unset user.name", "--unset user.email", "user.useConfigOnly true"):
        run_command(project, "git", "config", *words.split())
    return {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def start_merge(project: Path) -> None:
    """Two branches that changed the same line of params.yaml."""
    for branch, value in (("other", 2), ("main", 3)):
        run_command(project, "git", "checkout", "-q", "-B", branch, "main")
        set_param(project / "params.yaml", "train.epochs", value)
        run_command(project, "git", "commit", "-qam", branch)
    run_command(project, "git", "reset", "-q", "--hard", "main")
    run_command(project, "git", "merge", "-q", "other", status=None)


def put_broken_images(project: Path) -> None:
    set_value("download.dataset", "own")(project)
    for name in ("cat", "dog"):
        (project / "data" / "own" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(project / "data" / "own" / name / "1.png")
    (project / "data" / "own" / "cat" / "2.png").write_text("no image")


def use_missing_remote(project: Path) -> None:
    run_dvc(project, "remote", "add", "-q", "--default", "storage", str(project.parent / "storage"))


def damage_database(project: Path) -> None:
    write("../prefect/prefect.db", "no database " * 1000)(project)


def break_python(project: Path) -> None:
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to("/gone/python3")


def hide_commands(project: Path) -> None:
    """As after a move of the project: the scripts name a Python that is gone."""
    run_command(project, sys.executable, "-m", "venv", "--without-pip", ".venv")
    write(".venv/bin/dvc", "#!/gone/.venv/bin/python\n")(project)
    (project / ".venv" / "bin" / "dvc").chmod(0o755)


FAULTS = {
    "no .dvc": Fault("cache", "error", "git checkout -- .dvc", "no DVC project", lambda p: shutil.rmtree(p / ".dvc")),
    "no repository": Fault("git", "error", "git init", "not a git rep", lambda p: shutil.rmtree(p / ".git"), (), False),
    "wrong DVC settings": Fault(
        "remote", "error", ".dvc/config", "dvc config fails", write(".dvc/config", "[["), (), False
    ),
    "dvc.yaml that is no text": Fault(
        "pipeline",
        "error",
        "git checkout -- dvc.yaml",
        "not UTF-8",
        write("dvc.yaml", "\udcff"),
        (),
        False,
    ),
    "conflict in dvc.lock": Fault(
        "dvc.lock", "error", "git checkout HEAD -- dvc.lock", "conflict markers", put_conflict("dvc.lock")
    ),
    "empty dvc.lock": Fault("dvc.lock", "error", "git checkout -- dvc.lock", "is empty", truncate("dvc.lock", 0)),
    "cut dvc.lock": Fault("dvc.lock", "error", "git checkout -- dvc.lock", "ends in", truncate("dvc.lock", 700)),
    "deleted dvc.lock": Fault(
        "dvc.lock", "warning", "git checkout -- dvc.lock", "deleted", lambda project: (project / "dvc.lock").unlink()
    ),
    "deleted source file": Fault(
        "git",
        "error",
        "git checkout -- stages/train.py",
        "deleted, but in the last commit: stages/train.py",
        lambda project: (project / "stages" / "train.py").unlink(),
    ),
    "own image that is none": Fault(
        "data-set", "error", "replace or remove", "unreadable 1", put_broken_images, (), False
    ),
    "conflict in params.yaml": Fault(
        "params", "error", "git add", "conflict markers", put_conflict("params.yaml"), is_mended=False
    ),
    "conflict in dvc.yaml": Fault(
        "pipeline", "error", "git add", "conflict markers", put_conflict("dvc.yaml"), is_mended=False
    ),
    "deleted output": Fault(
        "outputs",
        "warning",
        "dvc checkout --force data/splits",
        "missing: data/splits",
        lambda project: shutil.rmtree(project / "data" / "splits"),
    ),
    "deleted report": Fault(
        "outputs",
        "warning",
        "git checkout -- data/reports/data.md",
        "missing: data/reports/data.md",
        lambda project: (project / "data" / "reports" / "data.md").unlink(),
    ),
    "truncated output": Fault(
        "outputs", "error", "dvc checkout --force data/splits", "not what dvc.lock says", truncate(SPLITS, 1000)
    ),
    "flipped bit in the cache": Fault(
        "cache", "error", "dvc repro preprocess", "other bytes than its name says", flip_bit_in_cache
    ),
    "rwlock of a dead process": Fault("locks", "warning", "rm '.dvc/tmp/rwlock'", "which is gone", leave_rwlock),
    "rwlock of another process": Fault(
        "locks", "error", "rm '.dvc/tmp/rwlock'", "no DVC command", lambda project: leave_rwlock(project, os.getpid())
    ),
    "cut rwlock": Fault("locks", "error", "rm '.dvc/tmp/rwlock'", "cannot be read", write(".dvc/tmp/rwlock", '{"wr')),
    "temporary file": Fault(
        "temporary-files", "warning", "rm -r data/.splits.partial", "unfinished", write("data/.splits.partial/x", "")
    ),
    "clone of a killed run": Fault(
        "clones",
        "warning",
        "python -m flows.pipeline",
        "clones of killed runs",
        write(".dvc/tmp/clones/abc/x", ""),
        (),
        False,
    ),
    "no author": Fault("git", "warning", "git config user.name", "no author", forget_author),
    "merge with conflicts": Fault(
        "git", "error", "git merge --abort", "conflicts in params.yaml", start_merge, (), False
    ),
    "lock of a killed git": Fault("git", "error", "index.lock'", "left its lock", write(".git/index.lock", "")),
    "other version": Fault(
        "packages", "warning", "make setup", "tqdm 4.", replace_in("requirements.lock", "tqdm==", "tqdm==0."), (), False
    ),
    "missing package": Fault(
        "packages",
        "error",
        "make setup",
        "made-up",
        replace_in("requirements.lock", "tqdm==", "made-up==1\ntqdm=="),
        (),
        False,
    ),
    "version that does not work": Fault(
        "packages", "error", "make setup", "tqdm", replace_in("pyproject.toml", "tqdm>=4", "tqdm>=99"), (), False
    ),
    "environment whose Python is gone": Fault(
        "python", "error", "rm -rf .venv; make setup", "a Python that is gone", break_python, (), False
    ),
    "project that was moved": Fault("commands", "error", "make setup", "which is gone", hide_commands, (), False),
    "full disk": Fault("disk", "error", "du ", "GB free", lambda _: None, ("--min-free", "1e9"), False),
    "file from the future": Fault(
        "clock",
        "warning",
        "touch params.yaml",
        "from the future",
        lambda project: os.utime(project / "params.yaml", (time.time() + 9999,) * 2),
    ),
    "remote that is gone": Fault("remote", "error", "mkdir -p", "storage", use_missing_remote),
    "Prefect that does not answer": Fault(
        "prefect",
        "error",
        "unset PREFECT_API_URL",
        "no Prefect server answers at http://127.0.0.1:9/api",
        lambda _: {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
        (),
        False,
    ),
    "Prefect's address that is none": Fault(
        "prefect",
        "error",
        "http://HOST:PORT/api",
        "unknown url type",
        lambda _: {"PREFECT_API_URL": "foo"},
        (),
        False,
    ),
    "damaged database": Fault("database", "error", "mv ", "not a database", damage_database),
    "model that was changed": Fault(
        "model", "error", "dvc ", "not proven", truncate("data/model/model.onnx", 99), (), False
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_fix_mends_it(patient: Path, name: str) -> None:
    fault = FAULTS[name]
    variables = fault.cause(patient) or {}
    status, findings = examine(patient, fault.check, *fault.arguments, **variables)
    problems = [finding for finding in findings if finding["status"] == fault.status]
    assert problems, findings
    assert status == (fault.status == "error")
    assert fault.message in problems[0]["message"]
    assert fault.fix in problems[0]["fix"]
    if fault.is_mended:
        mend = problems[0]["fix"].partition(":")[0].partition(", or")[0]
        done = subprocess.run(mend, shell=True, cwd=patient, env=doctor_environment(patient), capture_output=True)
        assert done.returncode == 0, done.stderr
        _, findings = examine(patient, fault.check, *fault.arguments, **variables)
        assert {finding["status"] for finding in findings} == {"ok"}, findings


@pytest.mark.parametrize("number", ["-1", "nan", "much"])
def test_a_disk_that_cannot_be_so_full_is_a_wrong_argument(number: str) -> None:
    command = [sys.executable, "-m", "flows.doctor", "--min-free", number, "git"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{number} is not a number of gigabytes" in result.stderr


def test_faults_of_params_and_the_shell_are_each_found_in_one_run(patient: Path) -> None:
    providers = ["CoreMLExecutionProvider"]
    changes = {"train.epochs": "many", "machine.threads": 1000, "validate_parity.providers": providers}
    for name, value in changes.items():
        set_value(name, value)(patient)
    _, findings = examine(patient, "params", "threads", "providers", "arithmetic", MKL_CBWR="AVX512")
    found = {finding["check"]: (finding["status"], finding["message"], finding["fix"]) for finding in findings}
    assert found["threads"][0] == "warning"
    assert "which changes the bytes" in found["threads"][2]
    assert found["params"][:2] == ("error", "train.epochs: input should be a valid number, not 'many'")
    assert found["providers"][0] == "error"
    assert found["providers"][1].startswith("none of validate_parity.providers is available")
    assert "CPUExecutionProvider" in found["providers"][2]
    assert found["arithmetic"][0] == "error"
    assert found["arithmetic"][2] == "unset MKL_CBWR"


def test_a_device_that_is_not_here_and_a_misspelt_param_are_errors(patient: Path) -> None:
    set_value("machine.device", "mps")(patient)
    replace_in("params.yaml", "epochs:", "epoch:")(patient)
    _, findings = examine(patient, "params", "torch")
    found = {finding["check"]: finding["message"] for finding in findings if finding["status"] == "error"}
    assert found["params"] == "unknown param train.epoch (did you mean 'epochs'?)"
    assert found["torch"].startswith("machine.device is mps, which is not available: ")


def test_an_orphaned_stage_is_found(patient: Path) -> None:
    (patient / "stages" / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    start = (
        "import os, subprocess, sys\nprint(subprocess.Popen([sys.executable, '-m', 'stages.sleeper'], stdout=-3).pid)"
    )
    environment = {**command_environment(), "DVC_STAGE": "sleeper"}
    process = int(subprocess.check_output([sys.executable, "-c", start], cwd=patient, env=environment))
    try:
        problem = find_problem(patient, "processes")
        assert (problem["status"], problem["fix"]) == ("error", f"kill {process}")
        subprocess.run(problem["fix"].split(), check=True)
        wait_until(lambda: examine(patient, "processes")[0] == 0, 10)
    finally:
        if psutil.pid_exists(process):
            psutil.Process(process).kill()


def test_a_port_that_is_taken_names_who_has_it(patient: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        problem = find_problem(patient, "port", "--port", str(port))
    assert problem["status"] == "warning"
    assert f"by PID {os.getpid()} " in problem["message"]
    assert f'make serve FLAGS="--port {port + 1}"' in problem["fix"]
    assert examine(patient, "port", "--port", str(port))[0] == 0


@contextmanager
def failing_server() -> Iterator[str]:
    """A server that answers every request with status 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_data_set_that_no_mirror_delivers_is_an_error(patient: Path) -> None:
    set_param(patient / "params.yaml", "download.dataset", "mnist")
    with failing_server() as address:
        problem = find_problem(patient, "data-set", LOCKSTEP_MIRROR=address)
    assert problem["status"] == "error"
    assert f"{address}: t10k-labels-idx1-ubyte.gz: HTTP Error 500" in problem["message"]
    assert "LOCKSTEP_MIRROR=" in problem["fix"]
    assert "make run DATASET=digits" in problem["fix"]


def test_a_server_that_is_no_prefect_is_an_error(patient: Path) -> None:
    with failing_server() as address:
        problem = find_problem(patient, "prefect", PREFECT_API_URL=address)
    assert problem["status"] == "error"
    assert "HTTP Error 500" in problem["message"]


def test_a_locked_database_names_who_holds_it(patient: Path) -> None:
    (patient.parent / "prefect").mkdir()
    connection = sqlite3.connect(patient.parent / "prefect" / "prefect.db", isolation_level=None)
    connection.execute("CREATE TABLE one (two)")
    connection.execute("BEGIN EXCLUSIVE")
    problem = find_problem(patient, "database")
    assert problem["status"] == "error"
    assert "database is locked" in problem["message"]
    assert problem["fix"] == f"kill {os.getpid()}"
    connection.close()
    assert examine(patient, "database")[0] == 0


def test_few_open_files_are_a_warning(patient: Path) -> None:
    command = f"ulimit -n 200; exec '{sys.executable}' -m flows.doctor open-files"
    result = subprocess.run(
        ["bash", "-c", command], cwd=patient, env=doctor_environment(patient), capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "warning open-files" in result.stdout
    assert "-> ulimit -n" in result.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_pool_without_a_worker_is_a_warning(patient: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with prefect_server(tmp_path / "server", free_port()) as address:
        environment = doctor_environment(patient, PREFECT_API_URL=address)
        command = ["prefect", "work-pool", "create", "lockstep", "--type", "process"]
        subprocess.run(command, cwd=patient, env=environment, check=True, capture_output=True)
        problem = find_problem(patient, "workers", PREFECT_API_URL=address)
        status, findings = examine(patient, "prefect", PREFECT_API_URL=address)
    assert problem["fix"] == "prefect worker start --pool lockstep"
    assert "never seen" in problem["message"]
    assert (status, findings[0]["status"]) == (0, "ok")


def test_make_doctor_works_with_an_empty_environment(patient: Path) -> None:
    """It needs no package, installs nothing, and ends with one document."""
    run_command(patient, sys.executable, "-m", "venv", "--without-pip", ".venv")
    result = subprocess.run(
        ["make", "doctor", "FLAGS=--json"], cwd=patient, env=doctor_environment(patient), capture_output=True, text=True
    )
    assert result.returncode == 2  # make's own, for a command that fails
    assert "Traceback" not in result.stderr
    found = {(finding["check"], finding["status"]): finding for finding in json.loads(result.stdout)}
    assert " not installed: " in found["packages", "error"]["message"]
    assert found["packages", "error"]["fix"] == "make setup"
    assert found["outputs", "skipped"]["message"] == "needs the package pydantic, which is not installed"
    assert ("torch", "error") in found
    assert not (patient / ".venv" / "installed.lock").exists()


def test_make_doctor_works_if_the_python_of_the_environment_is_gone(patient: Path) -> None:
    break_python(patient)
    result = subprocess.run(
        ["make", "doctor", "FLAGS=git memory"],
        cwd=patient,
        env=doctor_environment(patient),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Nothing is wrong" in result.stdout


def test_people_get_a_line_for_each_check_and_the_fix_below(patient: Path) -> None:
    put_conflict("dvc.lock")(patient)
    write("data/.splits.partial/x", "")(patient)
    result = run_command(
        patient, sys.executable, "-m", "flows.doctor", "dvc.lock", "clones", "temporary-files", status=1
    )
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        "DVC",
        "  WRONG   dvc.lock          conflict markers in dvc.lock: DVC reads nothing of it",
        "                            -> git checkout HEAD -- dvc.lock",
    ]
    assert "left by killed runs" in lines
    assert "  ok      clones            none" in lines
    assert lines[-1].startswith("1 wrong, 1 warning")
    assert "\033" not in result.stdout


@pytest.mark.parametrize("arguments", [["--unknown"], ["made-up"], ["--port", "none"], ["--port", "0"]])
def test_bad_usage_exits_with_status_2(arguments: list[str]) -> None:
    result = run_command(ROOT, sys.executable, "-m", "flows.doctor", *arguments, status=2)
    assert result.stdout == ""


def test_the_checks_need_what_dvc_yaml_and_the_service_have() -> None:
    """Names that the checks know: the stage download, the artifact, and the port of `make serve`."""
    from flows.doctor.inputs import DATASET
    from flows.doctor.services import ARTIFACT

    dag = read_dag(ROOT)
    assert DATASET.partition(".")[0] in dag.stages
    assert ARTIFACT in dag.artifacts
    text = run_command(ROOT, sys.executable, "-m", "lockstep", "serve", "--help").stdout
    assert "0 chooses a free one; default: 8000" in " ".join(text.split())
