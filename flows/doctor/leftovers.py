"""Checks of what killed runs leave: stage processes, temporary files, clones and checkpoints."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.findings import Finding, Project, SkipError, name_some
from flows.doctor.probe import PROC, Process, ancestors, list_processes, lock_holder, working_directory

PARTIAL, INCOMING = "partial", "incoming"  # endings of hidden files, which stages and flows rename when complete
CHECKPOINTS = "--checkpoints"  # flag of a stage's command


def stage_processes(project: Project) -> tuple[list[Process], dict[int, Process]]:
    """The processes that run a stage in the project's folder or in a clone inside it; and all processes."""
    processes = list_processes()
    stages = [
        process
        for process in processes.values()
        if any(word.startswith("stages.") for word in process.command)
        and (folder := working_directory(process.pid))
        and folder.is_relative_to(project.root)
        and is_started_by_dvc(process.pid)
    ]
    return stages, processes


def is_started_by_dvc(pid: int) -> bool:
    """A stage that a person has started may outlive its shell."""
    try:
        return b"\0DVC_STAGE=" in b"\0" + (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False


def check_processes(project: Project) -> Iterator[Finding]:
    stages, processes = stage_processes(project)
    orphans = [one for one in stages if not any(is_dvc(parent) for parent in ancestors(one, processes))]
    for process in orphans:
        message = f"{process} runs on although its DVC command is gone, and may write over the next run's files"
        yield Finding("error", message, f"kill {process.pid}")
    if not orphans:
        yield Finding("ok", f"{len(stages)} stages run now" if stages else "no stage runs")


def is_dvc(process: Process) -> bool:
    return any(Path(word).name == "dvc" for word in process.command[:4])


def check_temporary_files(project: Project) -> Iterator[Finding]:
    if stage_processes(project)[0]:
        yield Finding("ok", "a stage runs, whose files these may be: not looked at")
        return
    folders = {
        project.root,
        *((project.root / out).parent for stage in project.dag().stages.values() for out in stage.outs),
    }
    found = [path for folder in sorted(folders) for path in folder.glob(".*") if folder.is_dir()]
    partial = [project.relative(path) for path in found if path.suffix == f".{PARTIAL}"]
    incoming = [project.relative(path) for path in found if path.suffix == f".{INCOMING}"]
    if partial:
        yield Finding(
            "warning", f"unfinished files of killed runs: {name_some(partial)}", f"rm -r {shlex.join(partial)}"
        )
    if incoming:
        yield Finding("ok", f"a started download, which the next run continues: {name_some(incoming)}")
    if not found or not (partial or incoming):
        yield Finding("ok", "none")


def check_clones(project: Project) -> Iterator[Finding]:
    folder = project.root / ".dvc" / "tmp" / "clones"
    clones = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    left = [project.relative(path) for path in clones if not lock_holder(path)]
    if left and not lock_holder(folder / "lock"):
        message = f"clones of killed runs, which the next run removes: {name_some(left)}"
        yield Finding("warning", message, "python -m flows.pipeline")
    else:
        yield Finding("ok", f"{len(clones)} in use" if clones else "none")


def check_checkpoints(project: Project) -> Iterator[Finding]:
    commands = [shlex.split(stage.command) for stage in project.dag().stages.values()]
    folders = [words[words.index(CHECKPOINTS) + 1] for words in commands if CHECKPOINTS in words[:-1]]
    if not folders:
        raise SkipError("no stage writes checkpoints")
    for folder in (project.root / name for name in folders):
        if process := lock_holder(folder / "lock"):
            yield Finding("ok", f"a training runs: {process}")
        elif files := [project.relative(path) for path in folder.glob("*.pt")]:
            yield Finding("ok", f"an unfinished training, which the same training continues: {name_some(files)}")
        else:
            yield Finding("ok", "none")
