"""The Prefect automations for runs whose worker or machine has died: marked as Crashed, and in a team run again."""

import asyncio
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.runtime import flow_run

from flows.errors import FlowError

MESSAGE = "No sign of life: its worker or machine died"
FLOW_NAMES = "lockstep*"  # Prefect reads the * as any ending
TEAM_POOLS = "team*"  # deploy/prefect.yaml
HEARTBEAT_TIMEOUT = timedelta(seconds=120)  # four heartbeats, which pyproject.toml and prefect.yaml set
MAX_ATTEMPTS = 3  # of a run in a team's pool

ANY_RUN = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
DEAD_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": MESSAGE})
OUR_FLOWS = ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOW_NAMES})
TEAM_RUNS = ResourceSpecification({"prefect.resource.role": "work-pool", "prefect.resource.name": TEAM_POOLS})


def make_automations() -> list[Automation]:
    """The first acts if no event of the run, neither a heartbeat nor a change of state, follows a heartbeat in time."""
    return [
        Automation(
            name="lockstep: end runs that show no sign of life",
            description="Made with the deployments. Marks a run as Crashed when it sends no heartbeat and no state.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.*"},
                match=ANY_RUN,
                match_related=OUR_FLOWS,
                for_each={"prefect.resource.id"},
                threshold=1,
                within=HEARTBEAT_TIMEOUT,
            ),
            actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=MESSAGE)],
        ),
        Automation(
            name="lockstep: run again what died in a team's pool",
            description="Made with the deployments. Schedules a run again that showed no sign of life.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={"prefect.flow-run.Crashed"},
                match=DEAD_RUNS,
                match_related=[OUR_FLOWS, TEAM_RUNS],
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                ChangeFlowRunState(
                    name="AwaitingRetry",
                    state=StateType.SCHEDULED,
                    force=False,
                    message="Its worker died: another one takes it up",
                )
            ],
        ),
    ]


def check_attempts() -> None:
    """Raise an error if this run was started too often: each time its worker died."""
    if (attempts := flow_run.run_count or 1) > MAX_ATTEMPTS:
        raise FlowError(f"Not started for the {attempts}th time: its worker died {MAX_ATTEMPTS} times")


async def create_automations() -> None:
    """Create the automations, or update those that exist."""
    for automation in make_automations():
        try:
            automation.id = (await Automation.aread(name=automation.name)).id
        except ValueError:
            await automation.acreate()
        else:
            await automation.aupdate()


if __name__ == "__main__":
    asyncio.run(create_automations())
    print("\n".join(f"Automation: {automation.name}" for automation in make_automations()))
