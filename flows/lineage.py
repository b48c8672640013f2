"""Emits a Prefect asset event for every file that a stage has made: from what, with which hashes, in which run."""

from typing import Any

from prefect.events import emit_event

from flows.dvc.dag import Dag, Stage, is_inside
from flows.dvc.lock_file import LockEntry
from flows.plan import locked_params

PREFIX = "dvc://lockstep/"  # of an asset's key; the path in dvc.yaml follows
MADE = "prefect.asset.materialization.succeeded"


def emit_assets(dag: Dag, stage: Stage, entry: LockEntry) -> None:
    """One event for each out of the stage's entry in dvc.lock. Prefect adds the flow run and the task run to it.

    The server then answers which run made a file: see docs/prefect.md.
    """
    deps = {dep["path"]: dep.get("md5", "") for dep in entry.get("deps", [])}
    made = {out for name in stage.upstream for out in dag.stages[name].outs}
    inputs = [path for path in deps if any(is_inside(path, out) or is_inside(out, path) for out in made)]
    related = [{"prefect.resource.id": asset_key(path), "prefect.resource.role": "asset"} for path in inputs]
    related.append({"prefect.resource.id": "dvc", "prefect.resource.role": "asset-materialized-by"})
    for out in entry.get("outs", []):
        payload: dict[str, Any] = {
            "md5": out.get("md5", ""),
            "size": out.get("size"),
            "stage": stage.name,
            "command": entry.get("cmd"),
            "deps": deps,
            "params": locked_params(entry),
        }
        resource = {"prefect.resource.id": asset_key(out["path"]), "prefect.resource.name": out["path"]}
        emit_event(MADE, resource=resource, related=related, payload=payload)


def asset_key(path: str) -> str:
    return PREFIX + path
