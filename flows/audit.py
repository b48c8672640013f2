"""The reproducibility alarm: every stage anew in a scratch clone, and every output held against dvc.lock."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.states import Completed, Failed

from flows.dvc.dag import read_dag
from flows.dvc.params_file import flatten
from flows.errors import FlowError
from flows.pipeline import ROOT, outcome, rename, run_stages
from flows.plan import read_lock
from flows.report import load, summary, table
from flows.terminal import run_cli, run_flow
from flows.workspace import scratch

KEY = "lockstep-audit"
Sums = dict[str, str]  # an output's path to its checksum
Trace = list[dict[str, str]]  # rows of a checksum for each tensor, by step


@flow(name="lockstep-audit", persist_result=False)
async def audit(tolerance: float = 0.005) -> State[Any]:
    """Run every stage anew from the raw data in a scratch clone of HEAD, and fail if a byte differs from dvc.lock.

    Where train's record of the machine is another than the committed one (arithmetic, device, threads, and for native
    arithmetic the CPU), bytes may differ. There it runs twice, holds the two against each other byte by byte, and the
    metrics against those of HEAD.

    Args:
        tolerance: how far a metric may be from the committed one, where the machine is another
    """
    log = get_run_logger()
    try:
        async with scratch(ROOT, log.info) as root:
            state, report = await audited(root, tolerance)
    except FlowError as problem:
        state, report = Failed(message=str(problem)), str(problem)
    log.info(f"{state.name}: {state.message}")
    await acreate_markdown_artifact(f"## {state.name}: {state.message}\n\n{report}", KEY, state.message)
    await rename(f"audit: {state.message}"[:150])
    return state


async def audited(root: Path, tolerance: float) -> tuple[State[Any], str]:
    """What came of it, and the outputs one by one."""
    committed, machine, metrics = await checksums(root), read_machine(root), read_metrics(root)
    traces = read_traces(root)
    first = await rerun_all(root)
    differ = [path for path in committed if first.get(path) != committed[path]]
    report = table(["output", "dvc.lock", "anew"], [[path, committed[path], first.get(path, "")] for path in committed])
    if not differ:
        return Completed(
            name="Reproduced", message=f"All {len(first)} outputs are those of dvc.lock to the last byte"
        ), report
    here = read_machine(root)
    changes = machine_changes(machine, here)
    if not changes:
        where = locate_difference(root, differ, traces)
        return Failed(message=f"Bytes differ from those of dvc.lock: {', '.join(differ)}; {where}"), report
    traces = read_traces(root)
    second = await rerun_all(root)
    unequal = [path for path in first if first[path] != second.get(path)]
    far = list(metric_drift(metrics, read_metrics(root), tolerance))
    where = f"on another machine than the recorded one ({', '.join(changes)})"
    if unequal:
        begun = locate_difference(root, unequal, traces)
        return Failed(message=f"Two runs differ from each other, {where}: {', '.join(unequal)}; {begun}"), report
    if far:
        return Failed(message=f"Metrics are more than {tolerance:g} away, {where}: {', '.join(far)}"), report
    said = f"Two runs are equal to the last byte, and metrics within {tolerance:g} of the committed ones, {where}"
    return Completed(name="Reproduced", message=said), report


def machine_changes(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two records of the machine."""
    nothing = "nothing"
    return [
        f"{key} {recorded.get(key, nothing)} -> {here.get(key, nothing)}"
        for key in {**recorded, **here}
        if recorded.get(key) != here.get(key)
    ]


def locate_difference(root: Path, differ: list[str], before: Mapping[str, Trace]) -> str:
    """The first stage that made another output, and in its trace the steps and the tensors."""
    after = read_traces(root)
    for name, stage in read_dag(root).stages.items():
        if set(stage.outs) & set(differ):
            found = (
                first_difference(before[path], after[path]) for path in stage.outs if path in before and path in after
            )
            return ", ".join([f"it begins in {name}", *filter(None, found)])
    return "no stage of dvc.yaml makes them"


def first_difference(before: Trace, after: Trace) -> str:
    """The first row of two traces that differs: its step, and which tensors."""
    equal = ""
    for old, new in zip(before, after, strict=False):
        if old.keys() != new.keys() or old["step"] != new["step"]:
            return "whose traces are of other networks or steps"
        if columns := [column for column in old if old[column] != new[column]]:
            when = f"between step {equal} and {told_step(old['step'])}" if equal else "before the first step"
            return (
                f"{when}; tensors that differ: {len(columns)} of {len(old) - 1}, the first in the network {columns[0]}"
            )
        equal = old["step"]
    return ""


def told_step(step: str) -> str:
    return f"step {step}" if step.isdecimal() else "the end, where train calibrates and chooses the weights"


def read_traces(root: Path) -> dict[str, Trace]:
    """The traces of trainings, as train writes them, that are here."""
    outs = [out for stage in read_dag(root).stages.values() for out in stage.outs if Path(out).stem == "trace"]
    traces = {}
    for out in outs:
        if (root / out).exists():
            with (root / out).open(newline="", encoding="utf-8") as file:
                traces[out] = list(csv.DictReader(file))
    return traces


async def rerun_all(root: Path) -> Sums:
    """Run every stage; the checksums of what they made."""
    rows, _ = await run_stages(root, (), None, True, {})
    if not outcome(rows).is_completed():
        raise FlowError(f"A stage failed, so nothing was compared: {summary(rows)}")
    return await checksums(root)


async def checksums(root: Path) -> Sums:
    return {out["path"]: out["md5"] for entry in (await read_lock(root)).values() for out in entry.get("outs", [])}


def read_machine(root: Path) -> dict[str, Any]:
    """Where train ran, by its own record: for equal ones the same bytes are promised."""
    outs = [out for stage in read_dag(root).stages.values() for out in stage.outs]
    records = [load(root / out) for out in outs if Path(out).stem == "environment"]
    return {key: value for record in records for key, value in record.items() if key != "libraries"}


def read_metrics(root: Path) -> dict[str, Any]:
    files = [file for stage in read_dag(root).stages.values() for file in stage.metrics]
    return {f"{Path(file).stem}.{name}": value for file in files for name, value in flatten(load(root / file)).items()}


def metric_drift(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> Iterator[str]:
    """Floats and booleans that are too far away. Whole numbers, which count something, are not compared."""
    for name, before in old.items():
        after = new.get(name)
        near = isinstance(after, float) and isinstance(before, float) and abs(after - before) <= tolerance
        if isinstance(before, (float, bool)) and not near and before != after:
            yield f"{name} {before} -> {after}"


def command(*, tolerance: float = 0.005) -> None:
    """Run every stage anew in a scratch clone of HEAD, and fail if a byte differs from dvc.lock.

    Parameters
    ----------
    tolerance
        How far a metric may be from the committed one, where the machine is another.
    """
    raise SystemExit(run_flow(audit, tolerance=tolerance))


if __name__ == "__main__":
    run_cli(command, "python -m flows.audit")
