"""The flow: each stage of dvc.yaml becomes a task run, in which DVC runs it and whose state tells what came of it."""

import asyncio
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from cyclopts import Parameter
from prefect import State, Task, allow_failure, flow, get_client, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.dvc.command import dvc
from flows.dvc.dag import Dag, Stage, read_dag, select
from flows.dvc.lock_file import check_lockfile, committed_lock, missing_entries, repair_lockfile
from flows.dvc.params_file import flatten, parse_overrides, read_params, with_changes, write_params
from flows.errors import FlowError
from flows.parameters import overrides, stage_names, validate_params
from flows.plan import (
    LOST,
    Entry,
    Plan,
    dvc_status,
    explain_run,
    lock_names,
    make_plan,
    needs_validation,
    read_lock,
    sort_lockfile,
    split_entries,
)
from flows.process import Ended
from flows.report import EXITED, HINTS, Row, publish, result_table, row, summary, title
from flows.terminal import run_cli, run_flow
from flows.workspace import Where, workspace

ROOT = Path(__file__).parent.parent
if TYPE_CHECKING:
    StageName = str
    from flows.parameters import Overrides
else:
    StageName, Overrides = stage_names(ROOT), overrides(ROOT)
SHOWN = 10  # lines of a failed stage's output that its state shows


@flow(name="lockstep", persist_result=False)
async def pipeline(
    only: tuple[StageName, ...] = (),
    from_stage: StageName | None = None,
    force: bool = False,
    params: Overrides | None = None,
    where: Where = "tree",
    commit_to: str | None = None,
) -> State[Any]:
    """Run the stages of dvc.yaml that are stale, as `dvc repro` does, and say why.

    Args:
        only: run just these stages
        from_stage: run this stage and all that come after it
        force: run also what is up to date
        params: params.yaml is changed so first
        where: tree is the project's folder; clone is a clean clone of its HEAD, with the same DVC cache
        commit_to: the branch that a changed dvc.lock is committed to; it needs a clone
    """
    log = get_run_logger()
    changes = {
        name: value for name, value in flatten(params.model_dump() if params else {}).items() if value is not None
    }
    try:
        async with workspace(ROOT, where, commit_to, log.info) as place:
            rows, logs = await run_stages(place.path, only, from_stage, force, changes)
            await publish(place.path, rows, logs)
            await rename(summary(rows))
            state = outcome(rows)
            if state.is_completed():
                await place.keep(commit_to, summary(rows), log.info)
                log.info(result_table(place.path) or "There is no result yet: not all stages have run")
            return state
    except FlowError as problem:
        log.error(str(problem))
        return Failed(message=str(problem))


async def run_stages(
    root: Path, only: Sequence[str], first: str | None, force: bool, changes: Mapping[str, Any]
) -> tuple[list[Row], Path]:
    """Plan, check, and run each stage in its task as soon as those before it have ended; where the outputs are."""
    log, dag = get_run_logger(), read_dag(root)
    await repair_lockfile(root, dag, log.info)
    plan = await checked_plan(root, dag, select(dag, only, first), force, changes, log.info)
    if changes:
        write_params(root / "params.yaml", with_changes(root / "params.yaml", changes))
    log.info(f"{plan}\n")
    await rename(title(plan))
    run = Run(root, dag, plan, force, ROOT / "logs" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{flow_run.id[:8]}")
    known = lock_names(root)
    try:
        async with asyncio.TaskGroup() as group:
            for name in plan.reasons:
                run.states[name] = group.create_task(run.stage(dag.stages[name]))
    except BaseExceptionGroup as several:  # Prefect raises in whatever runs when SIGTERM comes, also in a stage's task
        if several.subgroup(TerminationSignal):
            raise TerminationSignal(signal.SIGTERM) from None
        raise
    await sort_lockfile(root, dag, known)
    rows = [row(name, done.result(), run.seconds.get(name)) for name, done in run.states.items()]
    log.info("\n" + "\n".join(map(str, rows)) + "\n")
    return rows, run.logs


async def checked_plan(
    root: Path,
    dag: Dag,
    selected: tuple[str, ...],
    force: bool,
    changes: Mapping[str, Any],
    wait: Callable[[str], None],
) -> Plan:
    """What will run, once all params are known to be right."""
    text = with_changes(root / "params.yaml", changes)
    params = {**flatten(read_params(root / "params.yaml")), **changes}

    async def reading() -> dict[str, Entry]:
        recorded = await read_lock(root)
        await validate_params(root, text, needs_validation(dag, selected, recorded, params))
        return recorded

    if force:
        await reading()
        return Plan(dict.fromkeys(selected, "forced"))
    recorded, status = await asyncio.gather(reading(), dvc_status(root, wait))
    gone = missing_entries(recorded, split_entries(committed_lock(root))) if recorded else ()
    return make_plan(dag, selected, status, recorded, params, gone)


class Run:
    """One run: what its tasks share."""

    def __init__(self, root: Path, dag: Dag, plan: Plan, force: bool, logs: Path) -> None:
        self.root, self.dag, self.plan, self.force, self.logs = root, dag, plan, force, logs
        self.states: dict[str, asyncio.Task[State[Any]]] = {}
        self.seconds: dict[str, float] = {}  # of the stages that DVC was asked to run
        self.exits: dict[str, int] = {}  # what a failed stage's command exited with

    async def stage(self, stage: Stage) -> State[Any]:
        """The task run of a stage, when all before it have ended, however they did."""
        before = {name: await self.states[name] for name in self.dag.nearest(stage.name, self.plan.reasons)}

        async def repro() -> State[Any]:
            return await self.repro(stage, before)

        policy, fresh = stage.policy, self.fresh(stage, before)
        run: Any = Task(
            repro,
            name=stage.name,
            task_run_name=stage.name,
            description=stage.description,
            tags=() if fresh else policy.tags,  # they may stand for a limited resource
            retries=policy.retries,
            retry_delay_seconds=list(policy.retry_delay_seconds) or None,
            retry_condition_fn=lambda *_: self.may_retry(stage),
            cache_policy=NO_CACHE,  # DVC is the only cache
            persist_result=False,
        )
        edges = [allow_failure(as_failure(state)) for state in before.values()]
        state: State[Any] = await run(wait_for=edges, return_state=True)
        return state

    def fresh(self, stage: Stage, before: dict[str, State[Any]]) -> bool:
        """Whether DVC said at the start that there is nothing to do, and nothing has happened since."""
        return not self.plan.reasons[stage.name] and all(state.name == "UpToDate" for state in before.values())

    async def repro(self, stage: Stage, before: dict[str, State[Any]]) -> State[Any]:
        """What becomes of a stage, once those before it became what they became."""
        log, reason = get_run_logger(), self.plan.reasons[stage.name]
        if failed := [name for name, state in before.items() if not state.is_completed()]:
            return Cancelled(name="Skipped", message=f"{', '.join(failed)} did not succeed")
        if self.fresh(stage, before):
            return Completed(name="UpToDate", message="Nothing that it depends on has changed")
        log.info(f"Starts: {reason or 'what it depends on may have changed'}")
        recorded, started = (await read_lock(self.root, stage.name)).get(stage.name), time.monotonic()
        self.exits.pop(stage.name, None)
        self.logs.mkdir(parents=True, exist_ok=True)
        done = await dvc(
            ["repro", "--single-item", *(["--force"] if self.force else []), stage.name],
            self.root,
            say=lambda line: None if line.strip().startswith(HINTS) else log.info(line),
            wait=log.info,
            file=self.logs / f"{stage.name}.log",
            limit=stage.policy.timeout_seconds,
        )
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + time.monotonic() - started
        after = (await read_lock(self.root, stage.name)).get(stage.name)
        why = reason if self.force or reason == LOST else explain_run(recorded, after) or reason
        state = self.ended(stage, done, why)
        log.info(f"Ends: {state.name} after {self.seconds[stage.name]:.1f} s")
        return state

    def ended(self, stage: Stage, done: Ended, why: str) -> State[Any]:
        """The truth of it, from what DVC said."""
        if done.timed_out:
            limit = stage.policy.timeout_seconds
            return Failed(
                name="TimedOut", message=f"It took more than {limit:g} s, its limit in dvc.yaml, and was ended"
            )
        if done.status:
            exits = [found[1] for line in done.lines if (found := re.search(EXITED, line))]
            self.exits[stage.name] = int(exits[-1]) if exits else done.status
            return Failed(message="\n".join(done.lines[-SHOWN:]) or f"dvc exited with {done.status}")
        if any(line.startswith(f"Running stage '{stage.name}'") for line in done.lines):
            return Completed(name="Ran", message=why)
        if any(line.startswith(f"Stage '{stage.name}' is cached") for line in done.lines):
            return Completed(name="Restored", message=f"From DVC's run cache: {why}")
        return Completed(name="UpToDate", message="What it depends on is as it was")

    def may_retry(self, stage: Stage) -> bool:
        return not stage.policy.retry_on or self.exits.get(stage.name) in stage.policy.retry_on


def as_failure(state: State[Any]) -> State[Any]:
    """The state as one that `allow_failure` allows: Prefect starts no task after one that was cancelled or crashed."""
    return state if state.is_completed() else state.model_copy(update={"type": StateType.FAILED})


def outcome(rows: list[Row]) -> State[Any]:
    """The state of the whole run."""
    if any(not row.succeeded for row in rows):
        return Failed(message=summary(rows))
    if all(row.state == "UpToDate" for row in rows):
        return Completed(name="UpToDate", message="Nothing had to run")
    return Completed(message=summary(rows))


async def rename(name: str) -> None:
    """Call this flow run so."""
    async with get_client() as client:
        await client.update_flow_run(UUID(flow_run.id), name=name)


def command(
    *,
    only: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    set_: Annotated[tuple[str, ...], Parameter(name=["-S", "--set-param"], negative=())] = (),
    where: Where = "tree",
    commit_to: str | None = None,
    plan: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Run the stages of dvc.yaml that are stale.

    Parameters
    ----------
    only
        Run just these stages.
    from_
        Run this stage and all that come after it.
    force
        Run also what is up to date.
    set_
        Change params.yaml first, as in -S train.epochs=5.
    where
        tree: the project's folder; clone: a clean clone of its HEAD, with the same DVC cache.
    commit_to
        The branch that a changed dvc.lock is committed to; it needs a clone.
    plan
        Print what would run and why, and run nothing.
    """
    dag, changes = read_dag(ROOT), parse_overrides(set_)
    if only == ():
        raise FlowError(f"--only: name the stages to run; dvc.yaml has {', '.join(dag.stages)}")
    chosen = select(dag, only or (), from_)
    with_changes(ROOT / "params.yaml", changes)  # all of them are there
    if plan:
        if where != "tree" or commit_to:
            raise FlowError("--plan looks at the project's folder and runs nothing: leave --where and --commit-to out")
        asyncio.run(check_lockfile(ROOT, dag))
        print(asyncio.run(checked_plan(ROOT, dag, chosen, force, changes, print)))
        return
    status = run_flow(
        pipeline,
        only=only or (),
        from_stage=from_,
        force=force,
        params=Overrides.model_validate(changes) if changes else None,
        where=where,
        commit_to=commit_to,
    )
    sys.exit(status)


if __name__ == "__main__":
    run_cli(command, "python -m flows.pipeline")
