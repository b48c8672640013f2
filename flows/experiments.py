"""The flow `lockstep-sweep`: runs sets of experiments.yaml, or the points of a grid, as DVC experiments."""

import asyncio
import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from prefect import State, Task, flow, get_run_logger
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import Field

from flows.automation import check_attempts
from flows.comparison import compare_revisions
from flows.dvc.command import run_dvc
from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile
from flows.dvc.messages import command_exit_status, error_message
from flows.dvc.params_file import Experiments, edit_params_text, parse_overrides, read_experiments
from flows.errors import FlowError
from flows.parameters import validate_params
from flows.predictions import has_predictions
from flows.process import CommandResult
from flows.remote import run_to_end
from flows.report import markdown_table
from flows.terminal import run_cli, run_flow
from flows.workspace import git

ROOT = Path(__file__).parent.parent
ARTIFACT_KEY = "lockstep-sweep"
# The columns of `dvc exp show` that every table has, besides the params that the experiments change.
COLUMNS = (
    r"Experiment|.*evaluate\S*:accuracy|accuracy_(low|high)|macro_f1|passed|"
    r"train\.(model|epochs|batch|optimizer|learning_rate)"
)
GATE_FAILED = 3  # the exit status of evaluate for a model that is not good enough
RECORD_ONLY = "evaluate.gate=record"


@flow(name="lockstep-sweep", persist_result=False)
async def sweep(
    names: list[str] | None = None,
    grid: dict[str, list[Any]] | None = None,
    limit: Annotated[int, Field(ge=1)] = 1,
    deployment: str | None = None,
) -> State[Any]:
    """Run sets of experiments.yaml, and every point of a grid, each as a DVC experiment in a copy of the folder.

    Args:
        names: sets of experiments.yaml
        grid: values to combine, by param, as in {"train.epochs": [1, 2], "train.seed": [0, 1, 2]}
        limit: how many run in parallel
        deployment: run each as a run of this deployment, on any worker, instead of in a copy of this folder
    """
    log, semaphore = get_run_logger(), asyncio.Semaphore(limit)
    try:
        check_attempts()
        experiments = select_experiments(names or [], grid or {})
        await repair_lockfile(ROOT, read_dag(ROOT), log.info)
        for params in experiments.values():
            sections = sorted({name.split(".")[0] for name in params})
            await validate_params(ROOT, edit_params_text(ROOT / "params.yaml", params), sections)
    except FlowError as error:
        log.error(str(error))
        return Failed(message=str(error))
    run = run_in_copy if deployment is None else partial(run_on_worker, deployment)

    async def run_next(name: str, params: Mapping[str, Any]) -> State[Any]:
        async with semaphore:
            return await run(name, params)

    states = await asyncio.gather(*(run_next(*item) for item in experiments.items()))
    failed = [name for name, state in zip(experiments, states, strict=True) if not state.is_completed()]
    succeeded = {name: params for name, params in experiments.items() if name not in failed}
    if deployment and succeeded:
        pull = ["exp", "pull", "--no-cache", "--force", "origin", *succeeded]
        result = await run_dvc(pull, ROOT, on_wait=log.info)
        if result.returncode:
            log.error(f"dvc exp pull: {error_message(result.lines)}")
    await acreate_table_artifact(await read_results(succeeded, log.info), ARTIFACT_KEY, ", ".join(experiments))
    if failed:
        log.error(f"failed: {', '.join(failed)}")
        return Failed(message=f"failed: {', '.join(failed)}")
    return Completed(message=f"{len(experiments)} experiments: {', '.join(experiments)}")


async def run_in_copy(name: str, params: Mapping[str, Any]) -> State[Any]:
    """Run one experiment in its task. If it succeeds, it replaces an earlier experiment of the same name."""
    temporary_name = f"{name}-new"

    async def run() -> State[Any]:
        log = get_run_logger().info
        await run_dvc(["exp", "remove", temporary_name], ROOT)  # a killed run may have left it
        command = ["exp", "run", "--temp", "--name", temporary_name, *param_flags(params)]
        result = await run_experiment(command, log)
        if not result.returncode:
            result = await run_dvc(["exp", "rename", "--force", temporary_name, name], ROOT, on_line=log, on_wait=log)
        return experiment_state(name, result)

    task: Any = Task(run, name="experiment", task_run_name=name, cache_policy=NO_CACHE)
    state: State[Any] = await task(return_state=True)
    return state


async def run_on_worker(deployment: str, name: str, params: Mapping[str, Any]) -> State[Any]:
    """Run one experiment as a run of the deployment, and wait for its end."""
    revision = (await git(ROOT, "rev-parse", "HEAD"))[-1]
    return await run_to_end(deployment, name, {"name": name, "params": dict(params), "revision": revision})


@flow(name="lockstep-experiment", persist_result=False)
async def experiment(name: str, params: dict[str, Any], revision: str) -> State[Any]:
    """Run one experiment in the clone that a worker has made, and push it to origin and to the DVC remote.

    Args:
        name: the name of the DVC experiment
        params: the params that it changes, as in {"train.epochs": 5}
        revision: the commit that it starts from
    """
    log = get_run_logger().info
    try:
        check_attempts()
        if not re.fullmatch("[0-9a-f]{40}", revision):
            raise FlowError(f"revision: {revision!r:.60} is not the hash of a commit")
        await git(ROOT, "fetch", "--quiet", "origin", revision)
        await git(ROOT, "checkout", "--quiet", "--detach", revision)
    except FlowError as error:
        return Failed(message=str(error))
    command = ["exp", "run", "--pull", "--allow-missing", "--name", name, *param_flags(params)]
    result = await run_experiment(command, log)
    # Data first: an experiment in git whose data is nowhere is of no use.
    for command in (["push"], ["exp", "push", "--force", "--no-cache", "origin", name]):
        if not result.returncode:
            result = await run_dvc(command, ROOT, on_line=log, on_wait=log)
    return experiment_state(name, result)


async def run_experiment(command: Sequence[str], log: Callable[[str], None]) -> CommandResult:
    """Run `dvc exp run`. DVC discards an experiment whose stage fails; one that fails its gate is kept, uncertified.

    Only then does it get RECORD_ONLY, so that `dvc exp apply` of a good one does not switch the gate off.
    """
    result = await run_dvc(command, ROOT, on_line=log, on_wait=log)
    if result.returncode and command_exit_status(result.lines) == GATE_FAILED:
        log(f"It is not good enough: its metrics are kept, without a certificate, by {RECORD_ONLY}")
        result = await run_dvc([*command, "-S", RECORD_ONLY], ROOT, on_line=log, on_wait=log)
    return result


def param_flags(params: Mapping[str, Any]) -> list[str]:
    return [flag for param, value in params.items() for flag in ("-S", f"{param}={json.dumps(value)}")]


def experiment_state(name: str, result: CommandResult) -> State[Any]:
    if result.returncode:
        return Failed(message="\n".join(result.lines[-10:]))
    return Completed(message=f"dvc exp apply {name}")


def select_experiments(names: Sequence[str], grid: Mapping[str, list[Any]]) -> Experiments:
    """The named sets and the grid's points. DVC allows in an experiment's name what git allows in a branch's."""
    known = read_experiments(ROOT)
    unknown = [name for name in names if name not in known]
    if unknown or not (names or grid):
        problem = f"unknown experiments: {', '.join(unknown)}" if unknown else "name experiments, or --all, or a grid"
        raise FlowError(f"{problem}; experiments.yaml has {', '.join(known)}")
    if empty := [param for param, values in grid.items() if not values]:
        raise FlowError(f"{', '.join(empty)}: no values to combine")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    grid_names = ["-".join(f"{param.rpartition('.')[2]}-{value}" for param, value in point.items()) for point in points]
    experiments: Experiments = {}
    for name, params in zip([*names, *grid_names], [*map(known.get, names), *points], strict=True):
        experiment = re.sub(r"[^\w.-]|_", "-", name)
        if experiments.setdefault(experiment, params or {}) != (params or {}):
            raise FlowError(f"{name}: another of these experiments would also be called {experiment}; run them apart")
    return experiments


async def read_results(experiments: Experiments, on_wait: Callable[[str], None]) -> list[dict[str, str]]:
    """The rows of `dvc exp show` for these experiments, after the row of the commit that they started from."""
    command = ["exp", "show", "--csv", "--only-changed", "--drop", columns_to_drop(experiments, "rev")]
    result = await run_dvc(command, ROOT, on_wait=on_wait)
    rows = {}
    for row in csv.DictReader(line for line in result.lines if "," in line):
        if row.pop("rev", "") != "workspace":
            rows[row["Experiment"] or "HEAD"] = {**row, "Experiment": row["Experiment"] or "HEAD"}
    ordered = [rows[name] for name in ("HEAD", *experiments) if name in rows]
    table = [{column.rpartition("/")[2]: value for column, value in row.items()} for row in ordered]
    if has_predictions(read_dag(ROOT)) and (first := next((name for name in experiments if name in rows), "")):
        for row in table:
            row[f"beside {first}"] = "" if row["Experiment"] == first else compare_points(first, row["Experiment"])
    return table


def compare_points(first: str, name: str) -> str:
    """What McNemar's exact test says of an experiment, or of HEAD, beside the first experiment of the sweep."""
    try:
        comparison = compare_revisions(ROOT, first, name)
    except FlowError as error:
        return str(error)
    return f"{comparison.verdict} (p = {comparison.test.p_value:.3g})"


def columns_to_drop(experiments: Experiments, *more: str) -> str:
    """For `dvc exp show --drop`: a pattern of all columns but those of the table."""
    params = {re.escape(name) for params in experiments.values() for name in params}
    return f"^(?!({'|'.join([COLUMNS, *sorted(params), *more])})$)"


def sweep_cli(
    *names: str,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    grid: Annotated[tuple[str, ...], Parameter(name="-S")] = (),
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
) -> None:
    """Run experiments of experiments.yaml, or a grid, as DVC experiments; then print a table of their results.

    For example, run two named sets, then six combinations of two params:

    python -m flows.experiments quick standard

    python -m flows.experiments -S train.epochs=[1,2] -S train.seed=[0,1,2]

    Each runs in a copy of the folder; `dvc exp apply NAME` takes one over.

    Parameters
    ----------
    names
        Sets of experiments.yaml.
    all_
        Run all sets of experiments.yaml.
    grid
        A param and the values to combine: -S train.epochs=[1,2]. May be given several times.
    limit
        How many run in parallel.
    """
    values = {name: value if isinstance(value, list) else [value] for name, value in parse_overrides(grid).items()}
    selected = [*read_experiments(ROOT)] if all_ else [*names]
    experiments = select_experiments(selected, values)
    status = run_flow(sweep, names=selected, grid=values, limit=limit)
    if table := asyncio.run(read_results(experiments, print)):
        print(markdown_table([*table[0]], [[*row.values()] for row in table]))
    sys.exit(status)


if __name__ == "__main__":
    run_cli(sweep_cli, "python -m flows.experiments")
