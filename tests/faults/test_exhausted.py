"""A full disk, too little memory, too few open files: one line, earlier results whole, and the next run succeeds."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import ROOT, stage_command, write_params
from counts import record
from kills import create_small_project, partial_files
from repositories import STAGES, CompletedCommand, command_environment, commit_all, run_dvc

from flows.dvc.dag import read_dag

pytestmark = pytest.mark.slow
FULL = "No space left on device"


def can_mount() -> bool:
    return (
        sys.platform == "linux"
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
        and os.geteuid() == 0
    )


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root on Linux")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository after its first `dvc repro`, committed. Copy it; do not change it."""
    folder = create_small_project(tmp_path_factory.mktemp("small") / "project")
    run_dvc(folder, "repro")
    commit_all(folder)
    return folder


@pytest.fixture
def small_project(finished: Path, tmp_path: Path) -> Path:
    project = Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))
    shutil.rmtree(project / ".dvc" / "cache" / "runs")  # else it restores what has run
    return project


@contextmanager
def full_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """Put the folder, with its content, on a file system that has no free page; yields what makes room."""
    content = folder.with_name(f"{folder.name}-before")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, content)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)], check=True)
    try:
        shutil.copytree(content, folder, symlinks=True, dirs_exist_ok=True)
        used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        subprocess.run(["mount", "-o", f"remount,size={used + 65536}", str(folder)], check=True)
        with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(content)


def remove_outs(project: Path, stage: str) -> None:
    for out in map(project.joinpath, read_dag(project).stages[stage].outs):
        shutil.rmtree(out) if out.is_dir() else out.unlink()


def error_lines(done: CompletedCommand, stage: str) -> list[str]:
    """What the stage itself said on its way out; DVC adds its own summary."""
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith(f"{stage}: ")]


@needs_mount
@pytest.mark.parametrize(
    "stage",
    [pytest.param(name, marks=[pytest.mark.ci] if name == "preprocess" else [pytest.mark.faults]) for name in STAGES],
)
def test_a_disk_that_is_full_of_outputs_is_one_line_and_loses_nothing(stage: str, small_project: Path) -> None:
    lock = (small_project / "dvc.lock").read_bytes()
    remove_outs(small_project, stage)
    with full_disk(small_project / "data") as make_room:
        # By force: DVC would restore a stage whose outputs are all in its cache, and name the full disk badly.
        done = run_dvc(small_project, "repro", "--single-item", "--force", stage, status=None)
        assert done.returncode
        (line,) = error_lines(done, stage)
        assert FULL in line
        assert (small_project / "dvc.lock").read_bytes() == lock
        assert not list(partial_files(small_project / "data"))
        make_room()
        run_dvc(small_project, "repro")
        assert (small_project / "dvc.lock").read_bytes() == lock
        assert run_dvc(small_project, "status", "--json").stdout.strip() == "{}"
    record("disk full", target=f"outputs of {stage}", outcomes={"one line, then the same dvc.lock": 1})


@needs_mount
@pytest.mark.faults
def test_a_disk_that_is_full_of_checkpoints_is_one_line_and_loses_nothing(small_project: Path) -> None:
    lock = (small_project / "dvc.lock").read_bytes()
    remove_outs(small_project, "train")
    with full_disk(small_project / "data" / "checkpoints") as make_room:
        done = run_dvc(small_project, "repro", status=None)
        assert done.returncode
        (line,) = error_lines(done, "train")
        assert FULL in line
        make_room()
        run_dvc(small_project, "repro")
        assert (small_project / "dvc.lock").read_bytes() == lock
    record("disk full", target="checkpoints", outcomes={"one line, then the same dvc.lock": 1})


@needs_mount
@pytest.mark.faults
def test_a_disk_that_is_full_of_dvcs_cache_is_an_error_and_loses_nothing(small_project: Path) -> None:
    lock = (small_project / "dvc.lock").read_bytes()
    remove_outs(small_project, "train")
    shutil.rmtree(small_project / ".dvc" / "cache")
    with full_disk(small_project / ".dvc" / "cache") as make_room:
        done = run_dvc(small_project, "repro", status=None)
        assert done.returncode
        assert FULL in done.stderr
        assert "Traceback" not in done.stderr
        assert (small_project / "dvc.lock").read_bytes() == lock
        make_room()
        run_dvc(small_project, "repro")
        assert (small_project / "dvc.lock").read_bytes() == lock
        assert run_dvc(small_project, "status", "--json").stdout.strip() == "{}"
    record("disk full", target="DVC's cache", outcomes={"error of DVC, then the same dvc.lock": 1})


@needs_mount
@pytest.mark.faults
def test_a_disk_that_is_full_of_prefects_database_is_one_line(small_project: Path, tmp_path: Path) -> None:
    (home := tmp_path / "prefect").mkdir()
    env = {**command_environment(), "PREFECT_HOME": str(home), "PREFECT_API_URL": "", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "flows.pipeline"]

    def run() -> CompletedCommand:
        return subprocess.run(command, cwd=small_project, env=env, capture_output=True, text=True, check=False)

    with full_disk(home) as make_room:
        done = run()
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        assert done.returncode == 0 or len(done.stderr.strip().splitlines()) == 1, output
        make_room()
        assert (after := run()).returncode == 0, after.stdout + after.stderr
    record("disk full", target="Prefect's database", outcomes={"ended in one line or did without": 1})


def run_limited(command: list[str], folder: Path, limit: int, value: int) -> CompletedCommand:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        text=True,
        check=False,
    )


def import_stage(name: str) -> Callable[..., None]:
    import importlib

    stage: Callable[..., None] = getattr(importlib.import_module(f"stages.{name}"), name)
    return stage


def copy_outputs(stage_outputs: Path, folder: Path) -> Path:
    return Path(shutil.copytree(stage_outputs, folder / "outputs"))


@pytest.mark.ci
@pytest.mark.parametrize("name", [name for name in STAGES if name != "download"])
def test_a_file_that_may_not_grow_is_one_line_and_the_results_before_stay(
    name: str, stage_outputs: Path, tmp_path: Path
) -> None:
    folder = copy_outputs(stage_outputs, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = stage_command(folder, import_stage(name))
    done = run_limited(command, tmp_path, resource.RLIMIT_FSIZE, 100)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: ")
    assert "File too large" in line
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before if path in after and path.suffix != ".csv"}.items() <= before.items()
    assert not [path for path in after if ".partial" in str(path)]
    record("file size limit", target=name, outcomes={"one line": 1})


@pytest.mark.ci
@pytest.mark.parametrize("name", ["preprocess", "train"])
def test_too_few_open_files_are_one_line(name: str, stage_outputs: Path, tmp_path: Path) -> None:
    folder = copy_outputs(stage_outputs, tmp_path)
    command = stage_command(folder, import_stage(name))
    files = 3  # the first descriptors are enough for the imports; the least number that is too few for the stage
    for files in range(4, 16):
        done = run_limited(command, tmp_path, resource.RLIMIT_NOFILE, files)
        if done.returncode == 0 or not any("File " in line for line in done.stderr.splitlines()):
            break
    if done.returncode:
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{name}: ")
        assert "Too many open files" in line
    record("open files", target=name, outcomes={"one line" if done.returncode else "did not need more": 1})


@pytest.mark.ci
def test_too_little_memory_for_a_training_is_one_line(stage_outputs: Path, tmp_path: Path) -> None:
    folder = copy_outputs(stage_outputs, tmp_path)
    write_params(folder / "params.yaml", {"train.model": "compact", "train.width": 4096, "train.batch": 500})
    weights = (folder / "weights.safetensors").read_bytes()
    done = run_limited(stage_command(folder, import_stage("train")), tmp_path, resource.RLIMIT_AS, 6 << 30)
    assert done.returncode == 1, done.stderr[-2000:]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("train: not enough memory")
    assert "Traceback" not in done.stderr
    assert (folder / "weights.safetensors").read_bytes() == weights
    record("memory limit", target="train", outcomes={"one line": 1})
