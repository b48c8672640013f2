"""Prefect's server says which run made a file, and from what."""

from pathlib import Path
from typing import Any

import pytest
from repositories import run_dvc
from ruamel.yaml import YAML
from toys import last_run, post_api, run_flow_module, wait_until

KEY = "dvc://lockstep/"


def asset_events(prefect_api_url: str, run: str) -> list[dict[str, Any]]:
    """The events of the files that a flow run has made."""
    body = {
        "filter": {
            "event": {"name": ["prefect.asset.materialization.succeeded"]},
            "related": {"id": [f"prefect.flow-run.{run}"]},
        },
        "limit": 50,
    }
    return list(post_api(prefect_api_url, "events/filter", **body)["events"])


def related_ids(event: dict[str, Any], role: str) -> list[str]:
    return [entry["prefect.resource.id"] for entry in event["related"] if entry.get("prefect.resource.role") == role]


@pytest.mark.slow
@pytest.mark.ci
def test_the_server_knows_which_run_made_each_file_from_what(toy_repository: Path, prefect_api_url: str) -> None:
    run_flow_module(toy_repository, prefect_api_url=prefect_api_url)
    run = last_run(prefect_api_url)["id"]
    events = wait_until(lambda: len(found := asset_events(prefect_api_url, run)) == 4 and found, 60)
    lock = YAML(typ="safe", pure=True).load(toy_repository / "dvc.lock")["stages"]
    recorded = {out["path"]: out["md5"] for entry in lock.values() for out in entry["outs"]}
    assert {event["resource"]["prefect.resource.id"]: event["payload"]["md5"] for event in events} == {
        KEY + path: md5 for path, md5 in recorded.items()
    }
    edges = {
        (source.removeprefix(KEY), event["resource"]["prefect.resource.name"])
        for event in events
        for source in related_ids(event, "asset")
    }
    drawn = run_dvc(toy_repository, "dag", "--dot", "--outs").stdout
    dag = [line.strip(" ;").replace('"', "") for line in drawn.splitlines() if "->" in line]
    assert edges == {tuple(line.split(" -> ")) for line in dag}
    (join,) = [event for event in events if event["resource"]["prefect.resource.name"] == "join.txt"]
    assert join["payload"]["params"] == {"join.text": "join", "join.seconds": 0.0, "join.status": 0}
    assert join["payload"]["deps"]["left.txt"] == recorded["left.txt"]
    assert related_ids(join, "task-run")

    run_flow_module(toy_repository, "-S", "left.text=new", prefect_api_url=prefect_api_url)
    run = last_run(prefect_api_url)["id"]
    events = wait_until(lambda: len(found := asset_events(prefect_api_url, run)) == 2 and found, 60)
    assert {event["resource"]["prefect.resource.name"] for event in events} == {"left.txt", "join.txt"}
