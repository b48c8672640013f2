"""Checks of DVC: dvc.lock, the outputs, the objects in the cache, the remote, and the locks of DVC's commands."""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.doctor.findings import Finding, Project, SkipError, name_some
from flows.doctor.inputs import has_conflict
from flows.doctor.probe import hide_password, last_line, lock_holder, read_process, run
from flows.dvc.messages import error_message, is_busy_error
from flows.dvc.objects import list_objects, object_path, object_state
from flows.errors import FlowError

DVC_TIMEOUT, REMOTE_TIMEOUT = 20.0, 8.0  # seconds
HASH_SECONDS = 3.0  # to hash objects for; the others are not looked at
RERUN = "dvc repro"


def check_lockfile(project: Project) -> Iterator[Finding]:
    from flows.dvc.lock_file import committed_lock_text, describe_truncation, read_lock_text

    file = project.root / "dvc.lock"
    if not file.exists() and committed_lock_text(project.root).entries:
        yield Finding("warning", "deleted, but in the last commit: all stages will run", "git checkout -- dvc.lock")
        return
    if not file.exists():
        yield Finding("ok", "there is none yet: nothing has run")
        return
    if has_conflict(file):
        fix = "git checkout HEAD -- dvc.lock"
        yield Finding("error", "conflict markers in dvc.lock: DVC reads nothing of it", fix)
        return
    committed = committed_lock_text(project.root)
    if damage := describe_truncation(read_lock_text(project.root), committed, project.dag()):
        fix = "git checkout -- dvc.lock" if committed.entries else "rm dvc.lock && dvc repro"
        yield Finding("error", f"dvc.lock {damage}: a DVC command was killed while it wrote it", fix)
        return
    try:
        yield Finding("ok", f"has {len(project.lock_entries())} stages")
    except SkipError:
        yield Finding("error", "dvc.lock is not valid", "git checkout -- dvc.lock")


def check_outputs(project: Project) -> Iterator[Finding]:
    """Outputs that are missing or changed although nothing that they are made of has changed; and what is stale."""
    dag, entries = project.dag(), project.lock_entries()
    status = read_status(project)
    stale, damaged = [], dict[tuple[str, str], list[str]]()  # paths by their change and the command that mends it
    for name in dag.stages:
        outs = damaged_outs(status.get(name, [])) if name in entries else {}
        for path, change in outs.items():
            if change == "modified" or (change == "deleted" and restore_command(project, name, path) != RERUN):
                damaged.setdefault((change, restore_command(project, name, path)), []).append(path)
        if status.get(name) and not outs.keys() & {path for paths in damaged.values() for path in paths}:
            stale.append(name)
    for (change, command), paths in damaged.items():
        fix = command if command == RERUN else f"{command} {shlex.join(paths)}"
        if change == "modified":
            yield Finding("error", f"not what dvc.lock says, so cut off or edited: {name_some(paths)}", fix)
        else:
            yield Finding("warning", f"missing: {name_some(paths)}", fix)
    if not damaged:
        text = f"{len(dag.stages) - len(stale)} of {len(dag.stages)} stages are up to date"
        yield Finding("ok", text + (f"; stale: {', '.join(stale)}" if stale else ""))


def damaged_outs(items: Sequence[Any]) -> dict[str, str]:
    """The changed outs of a stage in `dvc status`, unless its deps, params or command have changed too."""
    from flows.plan import drop_missing

    kinds = {kind: paths for item in items if isinstance(item, dict) for kind, paths in item.items()}
    outs: dict[str, str] = kinds.pop("changed outs", {})
    reasons = [item for item in drop_missing([kinds]) if any(item.values())]
    return {} if reasons or not all(isinstance(item, dict) for item in items) else outs


def read_status(project: Project) -> Mapping[str, list[Any]]:
    cache_findings(project)  # first, since `dvc status` removes a broken object that it meets
    result = run(["dvc", "status", "--json"], project.root, DVC_TIMEOUT)
    for line in result.lines:
        if line.startswith("{"):
            status: dict[str, list[Any]] = json.loads(line)
            return status
    if result.timed_out:
        raise SkipError(f"dvc status did not end within {DVC_TIMEOUT:.0f} s")
    if any(is_busy_error(line) for line in result.lines):
        raise SkipError("another DVC command runs: see locks")
    raise FlowError(f"dvc status fails: {hide_password(error_message(result.lines)) or last_line(result)}")


def restore_command(project: Project, stage: str, path: str) -> str:
    """The command that brings an output back: from the cache, from git, or by running stages again."""
    outs: list[dict[str, Any]] = project.lock_entries()[stage].get("outs", [])
    out = next((out for out in outs if out["path"] == path), {})
    if "md5" in out and object_path(cache_folder(project), out["md5"]).exists():
        return "dvc checkout --force"
    tracked = run(["git", "ls-files", "--error-unmatch", path], project.root, DVC_TIMEOUT)
    return RERUN if tracked.returncode else "git checkout --"


def dvc_settings(project: Project) -> dict[str, str]:
    """DVC's settings of all levels, as `dvc config --list` prints them."""

    def read() -> dict[str, str]:
        result = run(["dvc", "config", "--list"], project.root, DVC_TIMEOUT)
        if result.returncode:
            raise FlowError(f"dvc config fails: {last_line(result)}")
        return dict(line.split("=", 1) for line in result.lines if "=" in line)

    settings: dict[str, str] = project.facts.get("dvc settings", read)
    return settings


def cache_folder(project: Project) -> Path:
    def read() -> Path:
        try:
            settings = dvc_settings(project)
        except FlowError as error:
            raise SkipError("DVC's settings cannot be read: see remote") from error
        if "cache.dir" not in settings:
            return project.root / ".dvc" / "cache"
        return Path(last_line(run(["dvc", "cache", "dir"], project.root, DVC_TIMEOUT)))

    if not (project.root / ".dvc").is_dir():
        raise SkipError("this is no DVC project: there is no .dvc")
    folder: Path = project.facts.get("cache folder", read)
    return folder


def check_cache(project: Project) -> Iterator[Finding]:
    if not (project.root / ".dvc").is_dir():
        yield Finding("error", "there is no .dvc: this is no DVC project", "git checkout -- .dvc, or dvc init")
        return
    yield from cache_findings(project)


def cache_findings(project: Project) -> list[Finding]:
    findings: list[Finding] = project.facts.get("cache objects", lambda: [*verify_cache(project)])
    return findings


def verify_cache(project: Project) -> Iterator[Finding]:
    cache = cache_folder(project)
    if cache.exists() and not os.access(cache, os.W_OK | os.X_OK):
        yield Finding(
            "error", f"{cache} cannot be written", f"chmod -R u+rwX '{cache}', or dvc cache dir --local OTHER"
        )
        return
    deadline, counts, is_broken = time.monotonic() + HASH_SECONDS, {"intact": 0, "absent": 0, "unread": 0}, False
    uncached = uncached_outs(project)
    for digest, path, stage in list_objects(cache, project.lock_entries()):
        if path in uncached:
            continue
        file = object_path(cache, digest)
        state = object_state(file, digest, deadline)
        if state == "broken":
            is_broken = True
            message = f"the object of {path} has other bytes than its name says"
            yield Finding("error", message, f"rm -f '{project.relative(file)}' && dvc repro {stage}")
        else:
            counts[state] += 1
    if not is_broken:
        text = f"{counts['intact']} objects of dvc.lock are intact"
        text += f", {counts['absent']} not here" if counts["absent"] else ""
        text += f", {counts['unread']} not checked in {HASH_SECONDS:.0f} s" if counts["unread"] else ""
        yield Finding("ok", text)


def uncached_outs(project: Project) -> set[str]:
    """The outs with `cache: false`, of which there are no objects."""
    from ruamel.yaml import YAML

    project.dag()  # skips the check if dvc.yaml cannot be read
    stages = YAML(typ="safe").load(project.root / "dvc.yaml")["stages"].values()
    outs = [out for stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    options = [pair for out in outs if isinstance(out, dict) for pair in out.items()]
    return {path for path, option in options if option and option.get("cache") is False}


def check_remote(project: Project) -> Iterator[Finding]:
    try:
        settings = dvc_settings(project)
    except FlowError as error:
        fix = "correct .dvc/config or .dvc/config.local; git checkout -- .dvc/config takes the committed one"
        yield Finding("error", hide_password(str(error)), fix)
        return
    name = settings.get("core.remote")
    remotes = {key: url for key, url in settings.items() if key.startswith("remote.") and key.endswith(".url")}
    urls = {key.split(".")[1]: url for key, url in remotes.items()}
    if not urls:
        yield Finding("ok", "none: data are on this machine only")
    elif name is None:
        message = f"no default remote, only {name_some(urls)}: runs neither pull nor push"
        yield Finding("warning", message, f"dvc remote default {next(iter(urls))}")
    elif name not in urls:
        yield Finding("error", f"the default remote {name} has no URL", f"dvc remote add --force {name} URL")
    else:
        yield list_remote(project, name, urls[name])


def list_remote(project: Project, name: str, url: str) -> Finding:
    result = run(["dvc", "list-url", "--level", "0", f"remote://{name}"], project.root, REMOTE_TIMEOUT)
    if not result.returncode and not result.timed_out:
        return Finding("ok", f"{name} answers: {hide_password(url)}")
    errors = " ".join(error_message(result.lines).split()) or last_line(result)
    reason = f"no answer within {REMOTE_TIMEOUT:.0f} s" if result.timed_out else errors
    is_folder = "://" not in url
    fix = (
        f"mkdir -p '{url}', or mount it"
        if is_folder
        else f"mend the network or the credentials until `dvc list-url remote://{name}` answers"
    )
    return Finding("error", f"{name}, {hide_password(url)}: {hide_password(reason)}", fix)


def check_dvc_locks(project: Project) -> Iterator[Finding]:
    folder = project.root / ".dvc" / "tmp"
    problems = [*find_rwlock_problems(folder / "rwlock")]
    yield from problems
    for name, what in (("lock", "DVC's lock"), ("lockstep.lock", "the lock of runs in this folder")):
        if process := lock_holder(folder / name):
            yield Finding("ok", f"{what} is held by {process}: other commands wait for it")
            return
    if not problems:
        yield Finding("ok", "none is held")


def find_rwlock_problems(file: Path) -> Iterator[Finding]:
    """DVC's list of the paths that are in use, with the PID of each user; a killed command leaves its entries."""
    fix = f"rm '{file.relative_to(file.parents[2])}'"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        users = [
            *content.get("write", {}).values(),
            *(user for users in content.get("read", {}).values() for user in users),
        ]
        commands = {int(user["pid"]): str(user["cmd"]) for user in users}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield Finding("error", "DVC's rwlock cannot be read: a DVC command was killed while it wrote it", fix)
        return
    for pid, command in commands.items():
        process = read_process(pid)
        if process is None:
            yield Finding("warning", f"rwlock has entries of PID {pid}, which is gone: {command[:60]}", fix)
        elif not any("dvc" in word for word in process.command):
            yield Finding("error", f"rwlock blocks paths for {process}, which is no DVC command", fix)
