"""Reads, sorts and repairs dvc.lock, as text: one stage's entry is read six times as fast as the whole file.

DVC rewrites dvc.lock in place. If it is killed while it does, the file ends early, and its last entry is incomplete.
"""

import asyncio
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from flows.dvc.command import hold_dvc_lock
from flows.dvc.dag import Dag
from flows.environment import environment
from flows.errors import FlowError

CAUSE = "a DVC command was killed while it wrote it"
LockEntry = Mapping[str, Any]  # of one stage


class LockText(NamedTuple):
    header: str
    entries: dict[str, str]  # the text of each stage's entry


def split_lock(text: str) -> LockText:
    header, *entries = re.split(r"(?m)^(?=  [^\s-])", text)
    return LockText(header, {entry.partition(":")[0].strip(" '\""): entry for entry in entries})


def read_lock_text(root: Path) -> LockText:
    path = root / "dvc.lock"
    return split_lock(path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else "")


def committed_lock_text(root: Path) -> LockText:
    """dvc.lock in the last commit; without entries if there is no such file, commit or repository, or no git."""
    command = ["git", "show", "HEAD:./dvc.lock"]
    try:
        result = subprocess.run(command, cwd=root, env=environment(), capture_output=True, check=False)
    except FileNotFoundError:
        return split_lock("")
    return split_lock("" if result.returncode else result.stdout.decode(errors="surrogateescape"))


def write_lock_text(root: Path, lock: LockText) -> None:
    tmp = root / ".dvc.lock.partial"
    tmp.write_text("".join([lock.header, *lock.entries.values()]), encoding="utf-8", errors="surrogateescape")
    tmp.replace(root / "dvc.lock")


async def read_lock(root: Path, *names: str) -> dict[str, LockEntry]:
    """The entries of these stages, or of all."""
    async with hold_dvc_lock(root):
        entries = read_lock_text(root).entries
    text = "".join(entry for name, entry in entries.items() if not names or name in names)
    try:
        stages: dict[str, LockEntry] = await asyncio.to_thread(YAML(typ="safe", pure=True).load, text) or {}
    except Exception as error:  # of many types: ValueError for a damaged number or date, KeyError for %YAML 9.9
        raise FlowError(f"dvc.lock: not valid YAML (a merge conflict?): {' '.join(str(error).split())}") from error
    return stages


async def sort_lockfile(root: Path, dag: Dag, entries_before: Sequence[str]) -> None:
    """Put new entries after ENTRIES_BEFORE, in the order of `dvc repro`. Parallel stages end in any order."""
    order = [*entries_before, *(name for name in dag.stages if name not in entries_before)]
    async with hold_dvc_lock(root):
        header, entries = read_lock_text(root)
        names = [name for name in order if name in entries] + [name for name in entries if name not in order]
        if names != [*entries]:
            write_lock_text(root, LockText(header, {name: entries[name] for name in names}))


async def repair_lockfile(root: Path, dag: Dag, on_message: Callable[[str], None]) -> None:
    """If dvc.lock is truncated, keep its complete entries and take the others from the last commit."""
    async with hold_dvc_lock(root, on_message):
        committed, present = committed_lock_text(root), read_lock_text(root)
        damage = describe_truncation(present, committed, dag)
        if not damage or not (root / "dvc.lock").exists():
            return
        if not committed.entries or describe_truncation(committed, committed, dag):
            raise FlowError(
                f"dvc.lock {damage}: {CAUSE}, and the last commit has no complete one. Delete it and run again: DVC's "
                "run cache restores what has run here"
            )
        complete = dict([*present.entries.items()][:-1])
        write_lock_text(root, LockText(committed.header, complete | missing_entries(complete, committed)))
    source = "the complete entries are kept, the others are" if complete else "it is"
    on_message(
        f"dvc.lock {damage}: {CAUSE}. Repaired: {source} now as in the last commit. DVC's run cache has what ran since"
    )


async def check_lockfile(root: Path, dag: Dag) -> None:
    """Raise an error if dvc.lock is truncated, and change nothing."""
    async with hold_dvc_lock(root):
        damage = describe_truncation(read_lock_text(root), committed_lock_text(root), dag)
    if damage and (root / "dvc.lock").exists():
        raise FlowError(f"dvc.lock {damage}: {CAUSE}: run without --plan, which repairs it, or `git checkout dvc.lock`")


def missing_entries(present: Mapping[str, Any], committed: LockText) -> dict[str, str]:
    """The last commit's entries that are not in dvc.lock."""
    return {name: entry for name, entry in committed.entries.items() if name not in present}


def describe_truncation(lock: LockText, committed: LockText, dag: Dag) -> str:
    """Where dvc.lock ends too early; empty if it is complete."""
    if not lock.entries:
        return "ends before its first stage" if lock.header.strip("\0 \n") else "is empty"
    name, entry = [*lock.entries.items()][-1]
    has_conflict = any("\n<<<<<<< " in text for text in lock.entries.values())  # a person has to resolve that
    return "" if has_conflict or is_complete(entry, name, committed, dag) else f"ends in the middle of {name}"


def is_complete(entry: str, name: str, committed: LockText, dag: Dag) -> bool:
    """Whether a stage's entry has all its outs with their hashes, which DVC writes last."""
    outs = parse_outs(entry, name)
    if outs is None or not entry.endswith("\n"):
        return False
    declared = {*dag.stages[name].outs} if name in dag.stages else set()
    known = parse_outs(committed.entries.get(name, ""), name) or {}
    if (declared and not outs) or declared & known.keys() - outs.keys():
        return False
    return all(out_is_complete(out, known.get(path, {})) for path, out in outs.items())


def out_is_complete(out: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an out has its hash, and the keys that follow it in the last commit."""
    last_keys = {"size", "nfiles"} if str(out.get("md5")).endswith(".dir") else {"size"}
    return bool(out.keys() - {"path", "hash"}) and not last_keys & known.keys() - out.keys()


def parse_outs(entry: str, name: str) -> dict[str, dict[str, Any]] | None:
    """The outs of a stage's entry by path; None if the text is not an entry."""
    try:
        content = YAML(typ="safe", pure=True).load(entry)[name]
        content["cmd"]
        return {out["path"]: out for out in content.get("outs", [])}
    except Exception:  # of many types, as above
        return None
