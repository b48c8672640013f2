"""The flow `lockstep-promote`: registers the model of a commit as a new version if it is proven and not worse."""

import json
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from prefect import State, flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.states import Completed, Failed

from flows.audit import compare_rerun
from flows.automation import check_attempts
from flows.comparison import Comparison, find_obstacle, read_level
from flows.dvc.dag import Dag, read_dag
from flows.errors import FlowError
from flows.pipeline import ROOT, rename_flow_run
from flows.predictions import Predictions, read_predictions
from flows.process import stream_command
from flows.report import escape_markdown, markdown_table, shorten
from flows.terminal import run_cli, run_flow
from flows.workspace import dvc, fetch_origin, git, open_scratch_clone, resolve_revision

ARTIFACT = "classifier"  # in dvc.yaml
ARTIFACT_KEY = "lockstep-promotion"
STATEMENTS = "model.intoto.jsonl"  # of those who have rebuilt the model, one signed envelope a line
COMMITTED_PROOF = ("model.sig", STATEMENTS)  # beside the model, if someone has signed or rebuilt it and committed that
Check = tuple[str, bool, str]  # what was checked, whether it passed, and why


@flow(name="lockstep-promote", persist_result=False)
async def promote(stage: str = "prod", audit: bool = True, push: bool = False, revision: str = "HEAD") -> State[Any]:
    """Register the model of a commit with GTO, and assign the stage to it, if it is proven and not worse than the last.

    Args:
        stage: the stage that the model is to have
        audit: run every stage again first, and compare every byte
        push: push the tags to origin
        revision: the commit or branch whose model it is, such as origin/results
    """
    log = get_run_logger()
    try:
        check_attempts()
        commit = await find_candidate(revision)
        before = await staged_commit(stage)
        checks = [check async for check in run_checks(commit, stage, audit)]
        if all(passed for _, passed, _ in checks):
            if (await find_candidate(revision), await staged_commit(stage)) != (commit, before):
                raise FlowError("a commit or a promotion was made while the model was checked: run it again")
            version = await register(commit, stage, push)
            state: State[Any] = Completed(name="Promoted", message=f"{ARTIFACT} {version} is now {stage}")
        else:
            reasons = [f"{name}: {reason}" for name, passed, reason in checks if not passed]
            state = Failed(name="Refused", message="; ".join(reasons))
    except FlowError as error:
        checks, state = [], Failed(message=str(error))
    message = escape_markdown(str(state.message))
    rows = [[name, "passed" if passed else "failed", escape_markdown(reason)] for name, passed, reason in checks]
    report = f"## {state.name}: {message}\n\n{markdown_table(['check', 'result', 'why'], rows)}"
    for name, passed, reason in checks:
        log.info(f"{name}: {'passed' if passed else 'failed'}, {reason}")
    log.info(f"{state.name}: {state.message}")
    await acreate_markdown_artifact(report, ARTIFACT_KEY, message)
    await rename_flow_run(shorten(f"{str(state.name).lower()}: {state.message}"))
    return state


async def find_candidate(revision: str) -> str:
    """The commit of the revision, after origin's branches and tags have been fetched; HEAD must be what is here."""
    changed = await git(ROOT, "status", "--porcelain", "--", "dvc.yaml", "dvc.lock", "params.yaml")
    if changed:
        names = ", ".join(line.split()[-1] for line in changed)
        raise FlowError(f"{names}: not committed; a promotion takes the level and the paths of a commit")
    await fetch_origin(ROOT)
    return await resolve_revision(ROOT, revision)


async def run_checks(candidate: str, stage: str, audit: bool) -> AsyncIterator[Check]:
    """The checks in order; ends at the first that fails."""
    level, dag = read_level(ROOT), read_dag(ROOT)
    registered = await staged_commit(stage)
    if registered == candidate:
        yield "comparison", False, f"this commit is {stage} already"
        return
    with tempfile.TemporaryDirectory() as folder:
        await fetch_model(dag, candidate, Path(folder) / "new")
        check = await verify(dag, Path(folder) / "new")
        yield check
        if not check[1]:
            return
        if audit:
            async with open_scratch_clone(ROOT, get_run_logger().info, candidate) as clone:
                audited, _ = await compare_rerun(clone, tolerance=0.005)
            yield "audit", audited.is_completed(), str(audited.message)
            if not audited.is_completed():
                return
        if registered is None:
            yield "comparison", True, f"no {ARTIFACT} is {stage} yet"
            return
        old, new = (read_predictions(ROOT, commit) for commit in (registered, candidate))
        yield compare_predictions(old, new, level)


async def fetch_model(dag: Dag, commit: str, folder: Path) -> None:
    """Fetch the model of the commit with its proof, and its signature and statements if it has them."""
    folder.mkdir()
    outs = [Path(out) for stage in dag.stages.values() for out in stage.outs]
    proof = {out.stem: out for out in outs if out.stem in ("golden", "certificate", "CARD")}
    model = Path(dag.artifacts[ARTIFACT])
    names = ((model.parent / name).as_posix() for name in COMMITTED_PROOF)
    committed = await git(ROOT, "ls-tree", "--name-only", commit, "--", *names)
    for path in (model, *proof.values(), *map(Path, committed)):
        await dvc(ROOT, "get", ".", path.as_posix(), "--rev", commit, "--out", str(folder / path.name), "--quiet")


async def verify(dag: Dag, folder: Path) -> Check:
    model = folder / Path(dag.artifacts[ARTIFACT]).name
    result = await stream_command(["python", "-m", "lockstep", "verify", str(model), "--json"], ROOT)
    content: dict[str, Any] = next((json.loads(line) for line in result.lines if line.startswith("{")), {})
    if result.returncode:
        return "certificate", False, content.get("reason") or " ".join(result.lines)
    quality = content["certificate"]["quality"]
    return "certificate", True, f"accuracy {quality['accuracy']}, at least {quality['min_accuracy']}"


def compare_predictions(old: Predictions, new: Predictions, level: float) -> Check:
    """McNemar's exact test in one direction: is the new model worse on the same images?"""
    if obstacle := find_obstacle(old, new):
        return "comparison", False, f"the two models were {obstacle}"
    comparison = Comparison(old, new, level)
    test = comparison.test
    passed = test.p_worse >= level
    details = f"{test.won} test images won and {test.lost} lost; at least so many are lost by chance with p = "
    details += f"{test.p_worse:.3g}" + (" (not below" if passed else ", below") + f" promote.level {level:g}"
    return "comparison", passed, details + (")" if passed else "") + (f"; {comparison.note}" if comparison.note else "")


async def staged_commits(stage: str) -> list[str]:
    """The commits of the versions that had the stage, the last one now; empty after `gto unassign`.

    A version that gets the stage again, as by a roll-back, takes those after it away.
    """
    assignments = re.compile(rf"{re.escape(f'{ARTIFACT}#{stage}')}(!?)#(\d+)")
    matches = filter(None, map(assignments.fullmatch, await git(ROOT, "tag", "--list", f"{ARTIFACT}#*")))
    commits: list[str] = []
    for match in sorted(matches, key=lambda match: int(match[2])):
        commit = (await git(ROOT, "rev-parse", f"{match[0]}^{{commit}}"))[-1]
        commits = [] if match[1] else [*(commits[: commits.index(commit)] if commit in commits else commits), commit]
    return commits


async def staged_commit(stage: str) -> str | None:
    """The commit of the version that has the stage."""
    commits = await staged_commits(stage)
    return commits[-1] if commits else None


async def register(commit: str, stage: str, push: bool) -> str:
    """Tag the commit as the next version, unless it is one, and give it the stage; returns the version."""
    version = await find_version(commit)
    if not version:
        await run_gto("register", ARTIFACT, commit)
    return await assign(commit, stage, push)


async def find_version(commit: str) -> str | None:
    """The newest version that the commit is registered as."""
    tags = await git(ROOT, "tag", "--points-at", commit, "--list", f"{ARTIFACT}@*", "--sort=version:refname")
    versions = [tag.partition("@")[2] for tag in tags if re.fullmatch(rf"{ARTIFACT}@v\d+\.\d+\.\d+", tag)]
    return versions[-1] if versions else None


async def assign(commit: str, stage: str, push: bool) -> str:
    """Give the stage to the version of the commit; if its tags cannot be pushed, they are removed again."""
    version = str(await find_version(commit))
    before = set(await git(ROOT, "tag"))
    await run_gto("assign", ARTIFACT, "--version", version, "--stage", stage, "--force")
    if push:
        new = [*(set(await git(ROOT, "tag")) - before)]
        try:
            await git(ROOT, "push", "--quiet", "--atomic", "origin", f"{ARTIFACT}@{version}", *new)
        except FlowError:
            await git(ROOT, "tag", "--delete", *new)
            raise
    return version


async def roll_back(stage: str, push: bool) -> str:
    """Give the stage to the version that had it before; returns the version."""
    await find_candidate("HEAD")
    commits = await staged_commits(stage)
    if len(commits) < 2:
        raise FlowError(f"no other {ARTIFACT} was {stage} before")
    return await assign(commits[-2], stage, push)


async def run_gto(*arguments: str) -> list[str]:
    result = await stream_command(["gto", *arguments], ROOT)
    if result.returncode:
        raise FlowError(f"gto {arguments[0]}: {' '.join(result.lines)}")
    return list(result.lines)


@flow(name="lockstep-roll-back", persist_result=False)
async def roll_back_flow(stage: str = "prod", push: bool = False) -> State[Any]:
    """Give the stage back to the version that had it before.

    Args:
        stage: the stage
        push: push the tag to origin
    """
    try:
        message = f"{ARTIFACT} {await roll_back(stage, push)} is {stage} again"
    except FlowError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    get_run_logger().info(message)
    await rename_flow_run(message)
    return Completed(name="RolledBack", message=message)


def promote_cli(
    *,
    stage: str = "prod",
    skip_audit: bool = False,
    push: bool = False,
    revision: str = "HEAD",
    rollback: Annotated[bool, Parameter(name="--roll-back")] = False,
) -> None:
    """Register the model of a commit as a new version and give it a stage, if it is proven and not worse. For example:

    python -m flows.promote --stage staging

    dvc artifacts get . classifier --stage staging

    Parameters
    ----------
    stage
        The stage that the model is to have.
    skip_audit
        Do not run every stage again first.
    push
        Push the tags to origin.
    revision
        The commit or branch whose model it is, such as origin/results.
    rollback
        Give the stage back to the version that had it before, and promote nothing.
    """
    if rollback:
        raise SystemExit(run_flow(roll_back_flow, stage=stage, push=push))
    raise SystemExit(run_flow(promote, stage=stage, audit=not skip_audit, push=push, revision=revision))


if __name__ == "__main__":
    run_cli(promote_cli, "python -m flows.promote")
