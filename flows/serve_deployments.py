"""Every deployment of prefect.yaml, served by this one process: `make serve-flows`. No worker, no pool."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, RRule, Schedule
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT, temporary_settings
from ruamel.yaml import YAML

from flows.automation import set_up
from flows.errors import FlowError
from flows.server import HOST, answers, start_server
from flows.terminal import run_cli

ROOT = Path(__file__).parent.parent
KINDS: dict[str, Callable[..., Schedule]] = {"cron": Cron, "interval": Interval, "rrule": RRule}


def command() -> None:
    """Serve the deployments of prefect.yaml until interrupted."""
    os.chdir(ROOT)
    with temporary_settings({PREFECT_API_URL: PREFECT_API_URL.value() or default_server_url()}):
        asyncio.run(set_up())
        asyncio.run(served(deployments(ROOT)))


async def served(made: list[RunnerDeployment]) -> None:
    """Run them until a signal; then their runs are cancelled first. Prefect's own `serve` leaves them Running."""
    runner = Runner(name="lockstep")
    for deployment in made:
        await detach_from_pool(await runner.aadd_deployment(deployment))
    running = asyncio.create_task(runner.start())
    print(f"Serving {', '.join(one.name for one in made)} on {PREFECT_API_URL.value()}", flush=True)
    await asyncio.sleep(0)  # it sets its own handlers first
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not running.done():
        await runner.astop()
    await running


async def detach_from_pool(deployment: UUID) -> None:
    """Runs start in this folder and in no pool: one that `prefect deploy` had made keeps its place otherwise."""
    async with get_client() as client:
        await client.update_deployment(deployment, DeploymentUpdate(path=str(ROOT), work_pool_name=None))


def default_server_url() -> str:
    """The address of the server on the usual port of this machine; if none is there, one is started."""
    port = PREFECT_SERVER_API_PORT.value()
    url = f"http://{HOST}:{port}/api"
    return url if answers(url) else start_server(port, page=True)()


def deployments(root: Path) -> list[RunnerDeployment]:
    content = YAML(typ="safe", pure=True).load(root / "prefect.yaml")
    return [deployment(entry) for entry in content["deployments"]]


def deployment(entry: dict[str, Any]) -> RunnerDeployment:
    limit = entry.get("concurrency_limit")
    os.environ.update(entry["work_pool"].get("job_variables", {}).get("env", {}))  # without a pool runs inherit it
    made = load_flow_from_entrypoint(entry["entrypoint"]).to_deployment(
        entry["name"],
        description=entry.get("description"),
        tags=entry.get("tags"),
        parameters=entry.get("parameters"),
        schedules=[schedule(item) for item in entry.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig.model_validate(limit) if isinstance(limit, dict) else limit,
    )
    assert isinstance(made, RunnerDeployment)
    return made


def schedule(entry: dict[str, Any]) -> Schedule:
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        raise FlowError(f"prefect.yaml: a schedule has one of {', '.join(KINDS)}, not {sorted(entry)}")
    return KINDS[kinds[0]](entry[kinds[0]], timezone=entry.get("timezone", "UTC"), active=entry.get("active", True))


if __name__ == "__main__":
    run_cli(command, "python -m flows.serve_deployments")
