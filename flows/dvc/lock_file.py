"""A dvc.lock that was cut while DVC rewrote it in place: what is wrong with it, and how it becomes whole again."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dvc.command import hold_dvc_lock, wait_for_dvc_lock
from flows.dvc.dag import Dag
from flows.environment import environment
from flows.errors import FlowError
from flows.plan import lock_entries, split_entries, write_lock

HOW = "a DVC command was killed while it wrote it"
Lock = tuple[str, dict[str, str]]  # what stands above the stages, and each of them


async def repair_lockfile(root: Path, dag: Dag, say: Callable[[str], None]) -> None:
    """Where dvc.lock is cut, keep its whole entries, take the others from the last commit, and say so in one line."""
    await wait_for_dvc_lock(root, say)
    async with hold_dvc_lock(root):
        former, present = split_entries(committed_lock(root)), lock_entries(root)
        if not (what := find_truncation(root, present, former, dag)):
            return
        if not former[1] or describe_truncation(former, former, dag):
            raise FlowError(
                f"dvc.lock {what}: {HOW}, and the last commit has no whole one: delete it and run again: "
                "DVC's run cache brings back what ran here"
            )
        kept = dict([*present[1].items()][:-1])
        write_lock(root, "".join([former[0], *{**kept, **missing_entries(kept, former)}.values()]))
    source = "kept the entries before, took the others" if kept else "took it"
    say(f"dvc.lock {what}: {HOW}; repaired: {source} from the last commit; what ran since is in DVC's run cache")


async def check_lockfile(root: Path, dag: Dag) -> None:
    """Refuse a dvc.lock that is cut, and change nothing."""
    async with hold_dvc_lock(root):
        what = find_truncation(root, lock_entries(root), split_entries(committed_lock(root)), dag)
    if what:
        raise FlowError(f"dvc.lock {what}: {HOW}: run without --plan, which repairs it, or `git checkout dvc.lock`")


def committed_lock(root: Path) -> str:
    """dvc.lock in the last commit; nothing where there is no such file, commit or repository, or no git."""
    command = ["git", "show", "HEAD:./dvc.lock"]
    try:
        done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    return "" if done.returncode else done.stdout.decode(errors="surrogateescape")


def missing_entries(present: Mapping[str, str], former: Lock) -> dict[str, str]:
    """The last commit's entries that are not in dvc.lock."""
    return {name: entry for name, entry in former[1].items() if name not in present}


def find_truncation(root: Path, present: Lock, former: Lock, dag: Dag) -> str:
    """What is wrong with dvc.lock; nothing where it is whole, or not there."""
    return describe_truncation(present, former, dag) if (root / "dvc.lock").exists() else ""


def describe_truncation(present: Lock, former: Lock, dag: Dag) -> str:
    """In which way the text ends too early. DVC writes it from first to last: at most the last entry is not whole."""
    head, entries = present
    if not entries:
        return "ends before its first stage" if head.strip("\0 \n") else "is empty"
    name, entry = [*entries.items()][-1]
    if any("\n<<<<<<< " in text for text in entries.values()) or entry_is_complete(entry, name, former, dag):
        return ""  # a failed merge is a person's to mend
    return f"ends in the middle of {name}"


def entry_is_complete(entry: str, name: str, former: Lock, dag: Dag) -> bool:
    """Whether the entry of a stage has all its outs with their hashes: they stand last in it."""
    outs = parse_outs(entry, name)
    if outs is None or not entry.endswith("\n"):
        return False
    wanted = {*dag.stages[name].outs} if name in dag.stages else set()
    known = parse_outs(former[1].get(name, ""), name) or {}
    if (wanted and not outs) or wanted & known.keys() - outs.keys():
        return False
    return all(out_is_complete(out, known.get(path, {})) for path, out in outs.items())


def out_is_complete(out: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an out has its hash, and what follows it in the last commit."""
    after = {"size", "nfiles"} if str(out.get("md5")).endswith(".dir") else {"size"}
    return bool(out.keys() - {"path", "hash"}) and not after & known.keys() - out.keys()


def parse_outs(entry: str, name: str) -> dict[str, dict[str, Any]] | None:
    """The outs of an entry by their paths; None if that is not an entry."""
    try:
        content = YAML(typ="safe", pure=True).load(entry)[name]
        content["cmd"]
        return {out["path"]: out for out in content.get("outs", [])}
    except (YAMLError, KeyError, TypeError, AttributeError):
        return None
