"""Finds earlier results in git, so that a stage that ran on another machine does not run here again.

DVC's run cache does not share stages whose outs are in git (`cache: false`): between machines results travel as
commits.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dvc.command import hold_dvc_lock
from flows.dvc.dag import Dag, is_inside, read_dag
from flows.dvc.lock_file import LockEntry, LockText, read_lock, read_lock_text, split_lock, write_lock_text
from flows.dvc.params_file import flatten, read_params
from flows.errors import FlowError
from flows.plan import locked_params, stage_params
from flows.workspace import OnMessage, Workspace, fetch_branch, git

MAX_COMMITS = 50  # that are searched, newest first


async def take_over_results(
    workspace: Workspace, ref: str, changes: Mapping[str, Any], on_message: OnMessage
) -> Workspace:
    """Check out dvc.lock and the reports of the commit that has the most stages with the inputs of this run.

    The commits are HEAD and those of REF. What the commit has of other stages is stale, as always.
    """
    path = workspace.path
    dag, params = read_dag(path, changes), read_all_params(workspace, changes)
    best, most = "HEAD", len(await matching_stages(workspace, "HEAD", dag, params))
    for commit in await list_commits(workspace, ref):
        if most == len(dag.stages):
            break
        if (matches := len(await matching_stages(workspace, commit, dag, params))) > most:
            best, most = commit, matches
    if best == "HEAD":
        return workspace
    outs = [out for stage in dag.stages.values() for out in stage.outs]
    files = await git(path, "ls-tree", "-r", "--name-only", best, "--", "dvc.lock", *outs)
    await git(path, "checkout", "--quiet", best, "--", *files)
    on_message(
        f"Starts from the results of {best[:10]}, which has {most} of {len(dag.stages)} stages with these inputs"
    )
    return replace(workspace, base=best)


async def take_over_stage(workspace: Workspace, ref: str, dag: Dag, name: str, changes: Mapping[str, Any]) -> bool:
    """Take one stage's entry of dvc.lock, and its outs in git, from the newest commit of REF that has it.

    It must have been made from what dvc.lock now has of the upstream stages.
    """
    path, params = workspace.path, read_all_params(workspace, changes)
    remote, _, branch = ref.partition("/")
    await fetch_branch(path, remote, branch)
    known = {out["path"]: out.get("md5") for lock in (await read_lock(path)).values() for out in lock.get("outs", [])}
    for commit in [*await list_commits(workspace, ref), workspace.base]:
        if name not in (found := await matching_stages(workspace, commit, dag, params)):
            continue
        if any(known.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in found[name].get("deps", [])):
            continue
        entry = split_lock("\n".join([*await git(path, "show", f"{commit}:./dvc.lock"), ""])).entries[name]
        async with hold_dvc_lock(path):
            header, entries = read_lock_text(path)
            write_lock_text(path, LockText(header, {**entries, name: entry}))
        if files := await git(path, "ls-tree", "-r", "--name-only", commit, "--", *dag.stages[name].outs):
            await git(path, "checkout", "--quiet", commit, "--", *files)
        return True
    return False


def read_all_params(workspace: Workspace, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**flatten(read_params(workspace.path / "params.yaml")), **changes}


async def list_commits(workspace: Workspace, ref: str) -> list[str]:
    """The newest commits of REF that changed dvc.lock; none if there is no such ref."""
    flags = (f"--max-count={MAX_COMMITS}", "--full-history", "--format=%H")
    try:
        return await git(workspace.path, "log", *flags, ref, "--", "dvc.lock")
    except FlowError:
        return []


async def matching_stages(
    workspace: Workspace, commit: str, dag: Dag, params: Mapping[str, Any]
) -> dict[str, LockEntry]:
    """The entries of the stages that ran in this commit with the same command, params and files of git."""
    try:
        text = "\n".join(await git(workspace.path, "show", f"{commit}:./dvc.lock"))
        entries = YAML(typ="safe", pure=True).load(text)["stages"]
    except (FlowError, YAMLError, KeyError, TypeError):
        return {}
    changed = await git(workspace.path, "diff", "--name-only", commit, "HEAD", "--")
    outs = {out for stage in dag.stages.values() for out in stage.outs}
    changed_inputs = [path for path in changed if not any(is_inside(path, out) for out in outs)]
    return {
        name: entries[name]
        for name, stage in dag.stages.items()
        if name in entries
        and entries[name].get("cmd") == stage.command
        and locked_params(entries[name]) == stage_params(params, stage)
        and not any(is_inside(path, dep) for path in changed_inputs for dep in stage.deps)
    }
