"""The automation that ends runs whose worker or machine died: no sign of life for a while, and the run is Crashed."""

import asyncio
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "lockstep: end runs that show no sign of life"
DIED = "No sign of life: its worker or machine died"
FLOWS = ["lockstep", "lockstep-audit", "lockstep-sweep"]
PATIENCE = timedelta(seconds=120)  # four heartbeats, as pyproject.toml and prefect.yaml set them


def automation() -> Automation:
    """After a heartbeat any event of the same run is a sign of life: the next one, or a state, whatever its name."""
    return Automation(
        name=NAME,
        description="Set up with the deployments. A run that sends no heartbeat and no state is called Crashed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=PATIENCE,
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=DIED)],
    )


async def set_up() -> None:
    """Make the automation, or bring the one that is there up to date."""
    wanted = automation()
    try:
        wanted.id = (await Automation.aread(name=NAME)).id
    except ValueError:
        await wanted.acreate()
        return
    await wanted.aupdate()


if __name__ == "__main__":
    asyncio.run(set_up())
    print(f"Automation: {NAME}")
