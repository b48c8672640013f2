"""The Prefect automation that marks a run as Crashed when its heartbeats stop: its worker or machine has died."""

import asyncio
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "lockstep: end runs that show no sign of life"
MESSAGE = "No sign of life: its worker or machine died"
FLOW_NAMES = "lockstep*"  # Prefect reads the * as any ending
HEARTBEAT_TIMEOUT = timedelta(seconds=120)  # four heartbeats, which pyproject.toml and prefect.yaml set


def make_automation() -> Automation:
    """It acts if no event of the run, neither a heartbeat nor a change of state, follows a heartbeat in time."""
    return Automation(
        name=NAME,
        description="Made with the deployments. Marks a run as Crashed when it sends no heartbeat and no state.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOW_NAMES}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=HEARTBEAT_TIMEOUT,
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=MESSAGE)],
    )


async def create_automation() -> None:
    """Create the automation, or update the one that exists."""
    automation = make_automation()
    try:
        automation.id = (await Automation.aread(name=NAME)).id
    except ValueError:
        await automation.acreate()
        return
    await automation.aupdate()


if __name__ == "__main__":
    asyncio.run(create_automation())
    print(f"Automation: {NAME}")
