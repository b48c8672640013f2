"""Checks of what a person edits: git, params.yaml, dvc.yaml, and the data set that params.yaml names."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.findings import Finding, Project, SkipError, name_some, setup_fix
from flows.doctor.machine import machine_facts, read_text
from flows.doctor.probe import file_holders, last_line, run
from flows.errors import FlowError

GIT_TIMEOUT, MIRROR_TIMEOUT = 10.0, 10.0  # seconds
CONFLICT = re.compile(r"^(<<<<<<< |>>>>>>> )", re.MULTILINE)
UNFINISHED = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
DATASET = "download.dataset"
SOURCES = ("stages", "flows", "lockstep")
NO_REPOSITORY = "git init && git add -A && git commit -m start, or without git: dvc config core.no_scm true"
CORRECT = "correct it in params.yaml; git diff params.yaml shows what you changed"


def has_conflict(path: Path) -> bool:
    return path.exists() and bool(CONFLICT.search(path.read_text(encoding="utf-8", errors="replace")))


def check_git(project: Project) -> Iterator[Finding]:
    result = run(["git", "rev-parse", "--absolute-git-dir"], project.root, GIT_TIMEOUT)
    if result.returncode and read_text(project.root / ".dvc" / "config").replace(" ", "").count("no_scm=true"):
        yield Finding("ok", "not used: core.no_scm is set for DVC")
        return
    if result.returncode:
        if fix := next(
            (line.strip() for line in result.lines if "safe.directory" in line and "git config" in line), ""
        ):
            yield Finding("error", "the folder belongs to another user, so git refuses it", fix)
        else:
            reason = last_line(result).removeprefix("fatal: ")
            yield Finding("error", f"{reason}: DVC and runs in clones need git", NO_REPOSITORY)
        return
    problems = [*find_git_problems(project, Path(result.lines[-1]))]
    yield from problems
    if not problems:
        head = run(["git", "log", "-1", "--format=%h %s"], project.root, GIT_TIMEOUT)
        yield Finding("ok", f"HEAD {last_line(head)}"[:90] if not head.returncode else "no commit yet")


def find_git_problems(project: Project, folder: Path) -> Iterator[Finding]:
    root = project.root
    unmerged = run(["git", "diff", "--name-only", "--diff-filter=U"], root, GIT_TIMEOUT)
    operation = next((name for file, name in UNFINISHED.items() if (folder / file).exists()), "")
    if unmerged.lines and not unmerged.returncode:
        fix = "resolve and `git add` them" + (f", or git {operation} --abort" if operation else "")
        yield Finding("error", f"conflicts in {name_some(unmerged.lines)}", fix)
    elif operation:
        fix = "git commit" if operation == "merge" else f"git {operation} --continue"
        yield Finding("warning", f"an unfinished {operation}", f"{fix}, or git {operation} --abort")
    deleted = run(["git", "ls-files", "--deleted", "--", *SOURCES], root, GIT_TIMEOUT)
    if deleted.lines and not deleted.returncode:
        message = f"deleted, but in the last commit: {name_some(deleted.lines)}"
        yield Finding("error", message, f"git checkout -- {shlex.join(deleted.lines[:5])}")
    lock = folder / "index.lock"
    if lock.exists() and not file_holders(lock):
        yield Finding(
            "error",
            "a git command was killed and left its lock: nothing can be committed",
            f"rm '{project.relative(lock)}'",
        )
    if run(["git", "var", "GIT_COMMITTER_IDENT"], root, GIT_TIMEOUT).returncode:
        fix = "git config user.name 'Your Name' && git config user.email you@example.org"
        yield Finding("warning", "no author: you and dvc exp cannot commit", fix)


def check_params(project: Project) -> Iterator[Finding]:
    from flows.dvc.params_file import read_params

    file = project.root / "params.yaml"
    if not file.exists():
        yield Finding("error", "there is no params.yaml", "git checkout -- params.yaml")
        return
    if has_conflict(file):
        yield Finding("error", "conflict markers in params.yaml", "edit it, and `git add params.yaml`")
        return
    try:
        read_params(file)
    except FlowError as error:
        yield Finding("error", str(error), CORRECT)
        return
    facts = machine_facts(project)
    for line in facts.get("params_errors", []):
        yield Finding("error", line.removeprefix("params.yaml: "), CORRECT)
    if "params_errors" not in facts:
        reason = facts.get("runpy error") or "the stages cannot be imported: see torch"
        yield Finding("error", f"params.yaml cannot be checked: {reason}", setup_fix(project.root))
    elif not facts["params_errors"]:
        yield Finding("ok", "valid for every stage")


def check_pipeline(project: Project) -> Iterator[Finding]:
    from flows.dvc.dag import read_dag

    file = project.root / "dvc.yaml"
    if has_conflict(file):
        yield Finding("error", "conflict markers in dvc.yaml", "edit it, and `git add dvc.yaml`")
        return
    try:
        dag = read_dag(project.root)
    except FlowError as error:
        yield Finding("error", str(error), "git diff dvc.yaml; git checkout -- dvc.yaml takes the committed one")
        return
    yield Finding("ok", f"{len(dag.stages)} stages: {', '.join(dag.stages)}")


def check_dataset(project: Project) -> Iterator[Finding]:
    dag, name = project.dag(), project.params().get(DATASET)
    if "download" not in dag.stages or not name:
        raise SkipError("the pipeline has no stage download")
    if any("download" in line for line in machine_facts(project).get("params_errors", [])):
        raise SkipError("the section download is not valid: see params")
    stage = dag.stages["download"]
    result = run([*shlex.split(stage.command), "--check"], project.root, MIRROR_TIMEOUT)
    unset = "unset LOCKSTEP_MIRROR, or " if "LOCKSTEP_MIRROR" in os.environ else ""
    away = f"{unset}LOCKSTEP_MIRROR=/folder/or/url make run, or the embedded digits: make run DATASET=digits"
    mirror = os.environ.get("LOCKSTEP_MIRROR", "")
    if result.timed_out:
        yield Finding("error", f"{name}: no mirror delivers within {MIRROR_TIMEOUT:.0f} s", away)
    elif result.returncode:
        is_away = result.returncode in stage.options.retry_on
        reason = last_line(result).removeprefix("download: ").partition(". Connect")[0]
        yield Finding(
            "error", f"{name}: {reason}", away if is_away else "see docs/own-images.md, or make run DATASET=mnist"
        )
    elif unreadable := [line.strip() for line in result.lines if line.strip().startswith("unreadable")]:
        yield Finding("error", f"{name}: {' '.join(unreadable[0].split())}", "replace or remove these files")
    elif mirror and (failed := [line for line in result.lines if line.startswith(f"mirror {mirror}")]):
        yield Finding("warning", f"LOCKSTEP_MIRROR: {failed[0]}", "correct it, or unset LOCKSTEP_MIRROR")
    else:
        yield Finding("ok", f"{name} can be had")
