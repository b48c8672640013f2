"""The flow `lockstep`: runs each stage of dvc.yaml with DVC in a task run, whose state tells what happened and why."""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from cyclopts import Parameter
from prefect import State, Task, allow_failure, flow, get_client, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.automation import check_attempts
from flows.dvc.command import dvc_status, run_dvc
from flows.dvc.dag import Dag, Stage, read_dag
from flows.dvc.lock_file import (
    LockEntry,
    check_lockfile,
    committed_lock_text,
    missing_entries,
    read_lock,
    read_lock_text,
    repair_lockfile,
    sort_lockfile,
)
from flows.dvc.messages import command_exit_status, is_hint, repro_result
from flows.dvc.objects import remove_broken_outs
from flows.dvc.params_file import edit_params_text, flatten, parse_overrides, read_params, write_params
from flows.errors import FlowError
from flows.lineage import emit_assets
from flows.parameters import make_overrides_model, stage_name_type, validate_params
from flows.plan import LOST_ENTRY, Plan, explain_run, make_plan, needs_validation
from flows.process import CommandResult
from flows.remote import has_worker, run_stage_elsewhere
from flows.report import StageResult, format_result, plan_title, publish_report, result_stages, run_title
from flows.results import take_over_results
from flows.terminal import run_cli, run_flow
from flows.up_to_date import NOTHING_CHANGED, format_without_server, plan_without_server
from flows.workspace import UPSTREAM, Where, Workspace, open_workspace

ROOT = Path(__file__).parent.parent
if TYPE_CHECKING:
    StageName = str
    from flows.parameters import Overrides
else:
    StageName, Overrides = stage_name_type(ROOT), make_overrides_model(ROOT)
GPU_TAG = "gpu"
SERVER_TIMEOUT = 300.0  # seconds that a stage with tags waits for a server that is away
STATE_LINES = 10  # of a failed stage's output in its state's message


@flow(name="lockstep", persist_result=False)
async def pipeline(
    only: tuple[StageName, ...] = (),
    from_stage: StageName | None = None,
    force: bool = False,
    params: Overrides | None = None,
    where: Where = "tree",
    commit_to: str | None = None,
    push: bool = False,
    gpu_deployment: str | None = None,
) -> State[Any]:
    """Run the stages of dvc.yaml that are stale, as `dvc repro` does, and say why.

    Args:
        only: run these stages alone
        from_stage: run this stage and all stages downstream of it
        force: run also stages that are up to date
        params: change these values in params.yaml first
        where: tree is the project's folder; clone is a clean clone of its HEAD, with the same DVC cache
        commit_to: the branch to which the results are committed (dvc.lock, params.yaml, reports); needs a clone
        push: commit to that branch of origin, and start from the results that it has
        gpu_deployment: run stages with the tag gpu as runs of this deployment, if its pool has a worker; needs push
    """
    log = get_run_logger()
    changes = {
        name: value for name, value in flatten(params.model_dump() if params else {}).items() if value is not None
    }
    try:
        check_attempts()
        async with open_workspace(ROOT, where, commit_to, push, log.info) as workspace:
            if push:
                workspace = await take_over_results(workspace, f"{UPSTREAM}/{commit_to}", changes, log.info)
            gpu = gpu_deployment if push and gpu_deployment and await has_worker(gpu_deployment) else None
            results, log_dir = await run_stages(workspace, only, from_stage, force, changes, gpu, commit_to)
            if workspace.has_dvc_remote and (stages := result_stages(read_dag(workspace.path))):
                await run_dvc(["pull", "--allow-missing", *stages], workspace.path)
            await publish_report(workspace.path, results, log_dir)
            await rename_flow_run(run_title(results))
            state = flow_state(results)
            if state.is_completed() or push:  # what other machines need not run again
                stages_run = [result.stage for result in results if result.state in ("Ran", "Restored")]
                await save_results(workspace, commit_to, run_title(results), stages_run, log.info)
            if state.is_completed():
                log.info(format_result(workspace.path))
            return state
    except FlowError as error:
        log.error(str(error))
        return Failed(message=str(error))


async def save_results(
    workspace: Workspace, branch: str | None, title: str, stages_run: Sequence[str], on_message: Callable[[str], None]
) -> None:
    try:
        await workspace.save_results(branch, title, stages_run, on_message)
    except FlowError as error:
        kept = f"the outputs are in DVC's cache on {socket.gethostname()}: run there again, without --force"
        raise FlowError(f"{error}; {kept}") from None


async def run_stages(
    workspace: Workspace,
    only: Sequence[str],
    from_stage: str | None,
    force: bool,
    changes: Mapping[str, Any],
    gpu_deployment: str | None = None,
    branch: str | None = None,
) -> tuple[list[StageResult], Path]:
    """Run each stage in a task as soon as its upstream has ended; returns the results and the folder of the logs.

    With a DVC remote data may be missing: what a stage needs is pulled. Stages with the tag gpu run as runs of
    GPU_DEPLOYMENT, if it is given, which commits their results to BRANCH.
    """
    root, pull = workspace.path, workspace.has_dvc_remote
    log, dag = get_run_logger(), read_dag(root, changes)
    await repair_lockfile(root, dag, log.info)
    plan = await plan_run(root, dag, dag.select(only, from_stage), force, changes, log.info, allow_missing=pull)
    if changes:
        write_params(root / "params.yaml", edit_params_text(root / "params.yaml", changes))
    log.info(f"{plan}\n")
    await rename_flow_run(plan_title(plan))
    log_dir = ROOT / "logs" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{flow_run.id[:8]}"
    run, entries_before = PipelineRun(workspace, dag, plan, force, log_dir), [*read_lock_text(root).entries]
    if gpu_deployment and branch:
        run.run_gpu_stage = partial(
            run_stage_elsewhere,
            workspace,
            dag,
            deployment=gpu_deployment,
            branch=branch,
            changes=changes,
            force=force,
            on_message=log.info,
        )
    try:
        async with asyncio.TaskGroup() as group:
            for name in plan.reasons:
                run.states[name] = group.create_task(run.run_task(dag.stages[name]))
    except BaseExceptionGroup as errors:  # on SIGTERM Prefect raises in the task that happens to run
        if errors.subgroup(TerminationSignal):
            raise TerminationSignal(signal.SIGTERM) from None
        raise
    await sort_lockfile(root, dag, entries_before)
    results = [StageResult.of(name, task.result(), run.seconds.get(name)) for name, task in run.states.items()]
    log.info("\n" + "\n".join(map(str, results)) + "\n")
    return results, log_dir


async def plan_run(
    root: Path,
    dag: Dag,
    selected: tuple[str, ...],
    force: bool,
    changes: Mapping[str, Any],
    on_wait: Callable[[str], None],
    allow_missing: bool = False,
) -> Plan:
    """The plan, once all params are known to be valid."""
    params = {**flatten(read_params(root / "params.yaml")), **changes}
    lock_entries = await read_lock(root)
    text, stages = (
        edit_params_text(root / "params.yaml", changes),
        needs_validation(dag, selected, lock_entries, params),
    )
    if force:
        await validate_params(root, text, stages)
        return Plan(dict.fromkeys(selected, "forced"))
    _, status = await asyncio.gather(validate_params(root, text, stages), dvc_status(root, on_wait))
    if changes:  # `dvc status` has expanded the templates of dvc.yaml with the present params
        present = read_dag(root).stages
        status |= {name: ["changed command"] for name in selected if dag.stages[name] != present.get(name)}
    lost_entries = missing_entries(lock_entries, committed_lock_text(root)) if lock_entries else ()
    return make_plan(dag, selected, status, lock_entries, params, lost_entries, allow_missing)


class PipelineRun:
    """What the tasks of one run share."""

    run_gpu_stage: Callable[..., Awaitable[CommandResult]] | None = None  # if another deployment runs them

    def __init__(self, workspace: Workspace, dag: Dag, plan: Plan, force: bool, log_dir: Path) -> None:
        self.root, self.dag, self.plan, self.force, self.log_dir = workspace.path, dag, plan, force, log_dir
        self.pull = workspace.has_dvc_remote  # data may be missing here
        self.flags = [*(["--force"] if force else []), *(["--allow-missing"] if self.pull else [])]
        self.states: dict[str, asyncio.Task[State[Any]]] = {}
        self.seconds: dict[str, float] = {}  # that `dvc repro` took, with retries
        self.exit_statuses: dict[str, int] = {}  # of the commands of failed stages

    async def run_task(self, stage: Stage) -> State[Any]:
        """Wait for the upstream stages, also if they fail, and run the stage in its task."""
        upstream = {name: await self.states[name] for name in self.dag.upstream_within(stage.name, self.plan.reasons)}

        async def run() -> State[Any]:
            return await self.run_stage(stage, upstream)

        task: Any = Task(
            run,
            name=stage.name,
            task_run_name=stage.name,
            description=stage.description,
            tags=() if self.is_up_to_date(stage, upstream) else stage.options.tags,  # a tag may limit concurrency
            retries=stage.options.retries,
            retry_delay_seconds=list(stage.options.retry_delay_seconds) or None,
            retry_condition_fn=lambda *_: self.may_retry(stage),
            cache_policy=NO_CACHE,  # DVC is the only cache
            persist_result=False,
        )
        edges = [allow_failure(as_failed(state)) for state in upstream.values()]
        deadline = time.monotonic() + SERVER_TIMEOUT
        while True:
            try:
                state: State[Any] = await task(wait_for=edges, return_state=True)
            except ConcurrencySlotAcquisitionError:  # the server is away: Prefect does not retry this request
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(2)
            else:
                return state

    async def run_stage(self, stage: Stage, upstream: Mapping[str, State[Any]]) -> State[Any]:
        """Skip the stage, or run it with `dvc repro`; returns the state of its task."""
        log, name, reason = get_run_logger(), stage.name, self.plan.reasons[stage.name]
        if failed := [other for other, state in upstream.items() if not state.is_completed()]:
            return Cancelled(name="Skipped", message=f"{', '.join(failed)} did not succeed")
        if self.is_up_to_date(stage, upstream):
            return Completed(name="UpToDate", message=NOTHING_CHANGED)
        log.info(f"Starts: {reason or 'what it depends on may have changed'}")
        before, start = (await read_lock(self.root, name)).get(name), time.monotonic()
        if self.run_gpu_stage and GPU_TAG in stage.options.tags:
            result = await self.run_gpu_stage(stage=name)
        else:
            result = await self.repro(stage, log)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        self.exit_statuses[name] = command_exit_status(result.lines) or result.returncode
        after = (await read_lock(self.root, name)).get(name)
        if not (self.force or reason == LOST_ENTRY):
            reason = explain_run(before, after) or reason
        state = stage_state(stage, result, reason)
        if after and state.name == "Restored" and (broken := await self.remove_broken(name, after)):
            log.warning(f"DVC's cache has other bytes than dvc.lock says of {', '.join(broken)}: removed, runs again")
            state = stage_state(stage, await self.repro(stage, log), "the output in DVC's cache was damaged")
        if after and state.name in ("Ran", "Restored"):
            emit_assets(self.dag, stage, after)
        log.info(f"Ends: {state.name} after {self.seconds[name]:.1f} s")
        return state

    async def repro(self, stage: Stage, log: Any) -> CommandResult:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # With --single-item DVC takes a missing dep for unchanged, also if its hash in dvc.lock has changed.
        if missing := [dep for dep in stage.deps if self.pull and not (self.root / dep).exists()]:
            result = await run_dvc(["pull", *missing], self.root, on_line=log.info, on_wait=log.info)
            if result.returncode:
                return result
        return await run_dvc(
            ["repro", "--single-item", *self.flags, stage.name],
            self.root,
            on_line=lambda line: None if is_hint(line) else log.info(line),
            on_wait=log.info,
            log_file=self.log_dir / f"{stage.name.replace('/', '-')}.log",
            timeout=stage.options.timeout_seconds,
        )

    async def remove_broken(self, name: str, entry: LockEntry) -> list[str]:
        """Outs that a damaged disk has changed in DVC's cache, from where DVC takes them without a look."""
        cache = (await run_dvc(["cache", "dir"], self.root)).lines[-1:]
        return await asyncio.to_thread(remove_broken_outs, self.root, Path(*cache), {name: entry})

    def is_up_to_date(self, stage: Stage, upstream: Mapping[str, State[Any]]) -> bool:
        """Whether the plan has no reason to run it, and no upstream stage has run since."""
        return not self.plan.reasons[stage.name] and all(state.name == "UpToDate" for state in upstream.values())

    def may_retry(self, stage: Stage) -> bool:
        return not stage.options.retry_on or self.exit_statuses.get(stage.name) in stage.options.retry_on


def stage_state(stage: Stage, result: CommandResult, reason: str) -> State[Any]:
    """The state of a stage's task after `dvc repro`."""
    if result.timed_out:
        limit = f"{stage.options.timeout_seconds:g} s"
        return Failed(name="TimedOut", message=f"Stopped after {limit}, its timeout_seconds in dvc.yaml")
    if result.returncode:
        return Failed(message="\n".join(result.lines[-STATE_LINES:]) or f"dvc exited with {result.returncode}")
    name = repro_result(stage.name, result.lines)
    messages = {
        "Ran": reason,
        "Restored": f"From DVC's run cache: {reason}",
        "UpToDate": "What it depends on did not change",
    }
    return Completed(name=name, message=messages[name])


def as_failed(state: State[Any]) -> State[Any]:
    """A state that `allow_failure` accepts: Prefect starts no task after a cancelled or crashed one."""
    return state if state.is_completed() else state.model_copy(update={"type": StateType.FAILED})


def flow_state(results: list[StageResult]) -> State[Any]:
    if any(not result.succeeded for result in results):
        return Failed(message=run_title(results))
    if all(result.state == "UpToDate" for result in results):
        return Completed(name="UpToDate", message="Nothing had to run")
    return Completed(message=run_title(results))


async def rename_flow_run(name: str) -> None:
    async with get_client() as client:
        await client.update_flow_run(UUID(flow_run.id), name=name)


def pipeline_cli(
    *,
    only: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    force: bool = False,
    set_: Annotated[tuple[str, ...], Parameter(name=["-S", "--set-param"])] = (),
    where: Where = "tree",
    commit_to: str | None = None,
    push: bool = False,
    plan: bool = False,
) -> None:
    """Run the stages of dvc.yaml that are stale, each as a Prefect task; say what happened to each and why.

    For example, print what a changed learning rate would rerun, then run it:

    python -m flows.pipeline -S train.learning_rate=0.01 --plan

    python -m flows.pipeline -S train.learning_rate=0.01

    Parameters
    ----------
    only
        Run these stages alone: --only train evaluate.
    from_
        Run this stage and all stages downstream of it.
    force
        Run also stages that are up to date.
    set_
        Change a value in params.yaml first: -S train.epochs=5. May be given several times.
    where
        tree: the project's folder. clone: a clean clone of its HEAD, with the same DVC cache.
    commit_to
        The branch to which the results are committed: dvc.lock, params.yaml and reports. Needs --where clone.
    push
        Commit to that branch of origin, and start from the results that it has.
    plan
        Print which stages would run and why, and run none.
    """
    changes = parse_overrides(set_)
    edit_params_text(ROOT / "params.yaml", changes)  # raises an error if one does not exist
    dag = read_dag(ROOT, changes)
    if only == ():
        raise FlowError(f"--only: name the stages to run; dvc.yaml has {', '.join(dag.stages)}")
    selected = dag.select(only or (), from_)
    if plan:
        if where != "tree" or commit_to or push:
            raise FlowError(
                "--plan reads the project's folder and runs nothing: leave --where, --commit-to, --push out"
            )
        asyncio.run(check_lockfile(ROOT, dag))
        print(asyncio.run(plan_run(ROOT, dag, selected, force, changes, print)))
        return
    may_be_empty = not (changes or force or where != "tree" or commit_to or push)
    if may_be_empty and (empty_plan := plan_without_server(ROOT, selected)):
        print(format_without_server(ROOT, empty_plan))
        return
    status = run_flow(
        pipeline,
        only=only or (),
        from_stage=from_,
        force=force,
        params=Overrides.model_validate(changes) if changes else None,
        where=where,
        commit_to=commit_to,
        push=push,
    )
    sys.exit(status)


if __name__ == "__main__":
    run_cli(pipeline_cli, "python -m flows.pipeline")
