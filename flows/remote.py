"""Starts runs of a deployment, on any worker of its pool, and waits for them; runs a single stage that way."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect import State, get_client
from prefect.client.schemas.objects import WorkPoolStatus
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.dvc.dag import Dag
from flows.process import CommandResult
from flows.results import take_over_stage
from flows.workspace import UPSTREAM, Workspace

POLL_SECONDS = 2.0
RESCHEDULE_SECONDS = 60.0  # after which a crashed run stays as it is


async def run_to_end(deployment: str, name: str, parameters: Mapping[str, Any]) -> State[Any]:
    """The final state of a new run of the deployment."""
    run = await arun_deployment(deployment, parameters=dict(parameters), flow_run_name=name, timeout=0)
    try:
        return await wait_final(run.id)
    except asyncio.CancelledError:  # also when a time limit ends
        async with get_client() as client:
            await client.set_flow_run_state(run.id, Cancelling())
        raise


async def wait_final(flow_run: UUID) -> State[Any]:
    async with get_client() as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):  # the server may be away for a while
                state = (await client.read_flow_run(flow_run)).state
                if state and state.is_final() and not may_be_rescheduled(state):
                    return state
            await asyncio.sleep(POLL_SECONDS)


def may_be_rescheduled(state: State[Any]) -> bool:
    """Whether flows/automation.py may still schedule a crashed run again."""
    return state.is_crashed() and (datetime.now(UTC) - state.timestamp).total_seconds() < RESCHEDULE_SECONDS


async def has_worker(deployment: str) -> bool:
    """Whether the deployment exists and a worker polls its pool."""
    async with get_client() as client:
        try:
            pool = (await client.read_deployment_by_name(deployment)).work_pool_name
            return bool(pool) and (await client.read_work_pool(str(pool))).status == WorkPoolStatus.READY
        except ObjectNotFound:
            return False


async def run_stage_elsewhere(
    workspace: Workspace,
    dag: Dag,
    stage: str,
    deployment: str,
    branch: str,
    changes: Mapping[str, Any],
    force: bool,
    on_message: Callable[[str], None],
) -> CommandResult:
    """Run the stage as a run of the deployment, and take its entry of dvc.lock and its reports from the branch."""
    on_message(f"Runs on a worker of {deployment}")
    await workspace.save_results(branch, f"upstream of {stage}", dag.stages[stage].upstream, on_message)
    where = {"where": "clone", "commit_to": branch, "push": True}
    parameters = {"only": [stage], "params": dict(changes), "force": force, **where}
    try:
        async with asyncio.timeout(dag.stages[stage].options.timeout_seconds):
            state = await run_to_end(deployment, stage, parameters)
    except TimeoutError:
        return CommandResult(1, (), timed_out=True)
    if not state.is_completed():
        return CommandResult(1, (f"{deployment}: {state.name}: {state.message}",))
    if not await take_over_stage(workspace, f"{UPSTREAM}/{branch}", dag, stage, changes):
        return CommandResult(1, (f"{deployment}: completed, but the branch {branch} has no result of {stage}",))
    return CommandResult(0, (f"Running stage '{stage}' elsewhere",))
