"""The flow `lockstep-audit`: runs every stage again in a scratch clone, and compares each output with dvc.lock."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.states import Completed, Failed

from flows.automation import check_attempts
from flows.dvc.dag import read_dag
from flows.dvc.lock_file import read_lock
from flows.dvc.params_file import flatten
from flows.errors import FlowError
from flows.pipeline import ROOT, flow_state, rename_flow_run, run_stages
from flows.report import markdown_table, read_json, run_title, shorten
from flows.terminal import run_cli, run_flow
from flows.workspace import Workspace, open_scratch_clone

ARTIFACT_KEY = "lockstep-audit"
Trace = list[dict[str, str]]  # rows of train's trace: a step, and a checksum for each tensor


@flow(name="lockstep-audit", persist_result=False)
async def audit(tolerance: float = 0.005, revision: str = "HEAD") -> State[Any]:
    """Run every stage again from the raw data in a scratch clone, and fail if a byte differs from dvc.lock.

    Bytes may differ if train records another machine than the committed record (arithmetic, device, threads, and for
    native arithmetic the CPU). Then every stage runs twice: the outputs of the two runs must be the same bytes, and the
    metrics must be close to those of HEAD.

    Args:
        tolerance: the largest difference of a metric from the committed one, on another machine
        revision: the commit or branch, such as origin/results
    """
    log = get_run_logger()
    try:
        check_attempts()
        async with open_scratch_clone(ROOT, log.info, revision) as root:
            state, table = await compare_rerun(root, tolerance)
    except FlowError as error:
        state, table = Failed(message=str(error)), str(error)
    log.info(f"{state.name}: {state.message}")
    await acreate_markdown_artifact(f"## {state.name}: {state.message}\n\n{table}", ARTIFACT_KEY, state.message)
    await rename_flow_run(shorten(f"audit: {state.message}"))
    return state


async def compare_rerun(root: Path, tolerance: float) -> tuple[State[Any], str]:
    """The audit's state, and a table of every output."""
    committed, machine, metrics = await read_checksums(root), read_machine(root), read_metrics(root)
    if not committed:
        raise FlowError("there is no dvc.lock in this commit, so nothing to compare with: run dvc repro and commit it")
    traces = read_traces(root)
    checksums = await rerun_all(root)
    paths = list({**committed, **checksums})
    rows = [[path, committed.get(path, ""), checksums.get(path, "")] for path in paths]
    table = markdown_table(["output", "dvc.lock", "this run"], rows)
    different = [path for path in paths if checksums.get(path) != committed.get(path)]
    if not different:
        return Completed(
            name="Reproduced", message=f"All {len(checksums)} outputs have the same bytes as dvc.lock"
        ), table
    changes = list_changes(machine, read_machine(root))
    if not changes:
        source = locate_difference(root, different, traces)
        return Failed(message=f"Bytes differ from those of dvc.lock: {', '.join(different)}; {source}"), table
    where = f"on another machine than the recorded one ({', '.join(changes)})"
    traces = read_traces(root)
    checksums_again = await rerun_all(root)
    if different := [path for path in checksums if checksums[path] != checksums_again.get(path)]:
        source = locate_difference(root, different, traces)
        return Failed(message=f"Two runs differ from each other, {where}: {', '.join(different)}; {source}"), table
    if drift := metric_drift(metrics, read_metrics(root), tolerance):
        message = f"Metrics differ by more than {tolerance:g} from the committed ones, {where}: {', '.join(drift)}"
        return Failed(message=message), table
    message = f"Two runs gave the same bytes, and metrics within {tolerance:g} of the committed ones, {where}"
    return Completed(name="Reproduced", message=message), table


async def rerun_all(root: Path) -> dict[str, str]:
    """Run every stage; the checksums of the outputs."""
    results, _ = await run_stages(Workspace(root), (), None, force=True, changes={})
    if not flow_state(results).is_completed():
        raise FlowError(f"A stage failed, so nothing was compared: {run_title(results)}")
    return await read_checksums(root)


async def read_checksums(root: Path) -> dict[str, str]:
    return {out["path"]: out["md5"] for entry in (await read_lock(root)).values() for out in entry.get("outs", [])}


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key} {old.get(key, 'nothing')} -> {new.get(key, 'nothing')}" for key in keys]


def metric_drift(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[str]:
    """The floats that differ by more than the tolerance, and booleans that differ. Integers are not compared."""
    drifted = {}
    for name, before in old.items():
        after = new.get(name)
        are_close = isinstance(after, float) and isinstance(before, float) and abs(after - before) <= tolerance
        if isinstance(before, float | bool) and not are_close:
            drifted[name] = before
    return list_changes(drifted, {name: new[name] for name in drifted if name in new})


def locate_difference(root: Path, different: list[str], before: Mapping[str, Trace]) -> str:
    """The first stage with a different output, and the steps and tensors in its trace."""
    after = read_traces(root)
    for name, stage in read_dag(root).stages.items():
        if set(stage.outs) & set(different):
            traced = [path for path in stage.outs if path in before and path in after]
            details = [compare_traces(before[path], after[path]) for path in traced]
            return ", ".join([f"it begins in {name}", *filter(None, details)])
    return "no stage of dvc.yaml makes them"


def compare_traces(before: Trace, after: Trace) -> str:
    """The step of the first row that differs, and which tensors differ in it."""
    last_equal = ""
    for old, new in zip(before, after, strict=False):
        if old.keys() != new.keys() or old["step"] != new["step"]:
            return "whose traces are of different networks or steps"
        if tensors := [name for name in old if old[name] != new[name]]:
            is_step = old["step"].isdecimal()
            row = f"step {old['step']}" if is_step else "the end, where train calibrates and chooses the weights"
            when = f"between step {last_equal} and {row}" if last_equal else "before the first step"
            count = f"{len(tensors)} of {len(old) - 1}"
            return f"{when}; tensors that differ: {count}, the first in the network {tensors[0]}"
        last_equal = old["step"]
    return ""


def find_outs(root: Path, stem: str) -> list[str]:
    """The outs that exist and have this file name, without its suffix."""
    outs = [out for stage in read_dag(root).stages.values() for out in stage.outs if Path(out).stem == stem]
    return [out for out in outs if (root / out).exists()]


def read_traces(root: Path) -> dict[str, Trace]:
    traces = {}
    for path in find_outs(root, "trace"):
        with (root / path).open(newline="", encoding="utf-8") as file:
            traces[path] = list(csv.DictReader(file))
    return traces


def read_machine(root: Path) -> dict[str, Any]:
    """Train's record of the machine, without libraries. Two machines with equal records give the same bytes."""
    records = [read_json(root / path) for path in find_outs(root, "environment")]
    return {key: value for record in records for key, value in record.items() if key != "libraries"}


def read_metrics(root: Path) -> dict[str, Any]:
    paths = [path for stage in read_dag(root).stages.values() for path in stage.metrics]
    metrics = {Path(path).stem: flatten(read_json(root / path)) for path in paths}
    return {f"{stem}.{name}": value for stem, values in metrics.items() for name, value in values.items()}


def audit_cli(revision: str = "HEAD", /, *, tolerance: float = 0.005) -> None:
    """Run every stage of a commit again from the raw data in a scratch clone; fail if a byte differs from dvc.lock.

    On another machine than the recorded one every stage runs twice, and the two runs are compared. For example:

    python -m flows.audit --tolerance 0.002

    Parameters
    ----------
    revision
        The commit or branch, such as origin/results.
    tolerance
        The largest difference of a metric from the committed one, on another machine.
    """
    raise SystemExit(run_flow(audit, tolerance=tolerance, revision=revision))


if __name__ == "__main__":
    run_cli(audit_cli, "python -m flows.audit")
