"""`make serve-flows`: serves every deployment of prefect.yaml from this one process, without a worker or a pool."""

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from flows.automation import create_automations
from flows.errors import FlowError
from flows.server import HOST, is_healthy, start_server
from flows.terminal import run_cli

ROOT = Path(__file__).parent.parent
POOL = "lockstep"  # in prefect.yaml


def serve_cli() -> None:
    """Serve the deployments of prefect.yaml and their schedules until Ctrl-C.

    They are served on the server of PREFECT_API_URL, or on one at the usual port of this machine, which is started if
    there is none. While this runs, start a deployment from Prefect's page, or for example with:

    prefect deployment run lockstep/on-demand -p 'params={"train": {"epochs": 1}}'
    """
    os.chdir(ROOT)
    with temporary_settings({PREFECT_API_URL: PREFECT_API_URL.value() or default_server_url()}):
        asyncio.run(create_automations())
        asyncio.run(serve(read_deployments(ROOT)))


async def serve(deployments: list[RunnerDeployment]) -> None:
    """Serve until a signal, and then cancel the runs first. Prefect's own `serve` would leave them Running."""
    runner = Runner(name="lockstep")
    for deployment in deployments:
        await detach_from_pool(await runner.aadd_deployment(deployment))
    serving = asyncio.create_task(runner.start())
    print(
        f"Serving {', '.join(deployment.name for deployment in deployments)} on {PREFECT_API_URL.value()}", flush=True
    )
    await asyncio.sleep(0)  # the runner sets its own signal handlers first
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not serving.done():
        await runner.astop()
    await serving


async def detach_from_pool(deployment: UUID) -> None:
    """Unset the work pool that an earlier `prefect deploy` has set, so that this process runs the deployment."""
    async with get_client() as client:
        await client.update_deployment(deployment, DeploymentUpdate(path=str(ROOT), work_pool_name=None))


def default_server_url() -> str:
    """The server at the usual port of this machine, which is started if there is none."""
    port = PREFECT_SERVER_API_PORT.value()
    url = f"http://{HOST}:{port}/api"
    return url if is_healthy(url) else start_server(port, ui=True)()


def read_deployments(root: Path) -> list[RunnerDeployment]:
    """Those of the work pool POOL or of none: the others belong to the workers of their pool."""
    content = YAML(typ="safe", pure=True).load(root / "prefect.yaml")
    pools = [entry.get("work_pool", {}).get("name", POOL) for entry in content["deployments"]]
    return [make_deployment(entry) for entry, pool in zip(content["deployments"], pools, strict=True) if pool == POOL]


def make_deployment(entry: dict[str, Any]) -> RunnerDeployment:
    limit = entry.get("concurrency_limit")
    os.environ.update(entry.get("work_pool", {}).get("job_variables", {}).get("env", {}))  # inherited by the runs
    deployment = load_flow_from_entrypoint(entry["entrypoint"]).to_deployment(
        entry["name"],
        description=entry.get("description"),
        tags=entry.get("tags"),
        parameters=entry.get("parameters"),
        schedules=[make_schedule(item) for item in entry.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig.model_validate(limit) if isinstance(limit, dict) else limit,
        triggers=[TypeAdapter(DeploymentTriggerTypes).validate_python(item) for item in entry.get("triggers", [])],
    )
    assert isinstance(deployment, RunnerDeployment)
    return deployment


def make_schedule(entry: dict[str, Any]) -> Schedule:
    seconds = {"interval": timedelta(seconds=entry["interval"])} if "interval" in entry else {}
    try:
        return Schedule(**{"timezone": "UTC", **entry, **seconds})
    except (TypeError, ValueError) as error:
        raise FlowError(f"prefect.yaml: schedule {entry}: {error}") from error


if __name__ == "__main__":
    run_cli(serve_cli, "python -m flows.serve_deployments")
