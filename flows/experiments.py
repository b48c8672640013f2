"""Named sets of params, or all points of a grid, run as DVC experiments: `make experiments`, and the flow `sweep`."""

import asyncio
import csv
import itertools
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from prefect import State, Task, flow, get_run_logger
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.dvc.command import dvc
from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile
from flows.dvc.params_file import parse_overrides, with_changes
from flows.environment import run_command, set_param_flags
from flows.errors import FlowError
from flows.parameters import validate_params
from flows.terminal import run_cli, run_flow

ROOT = Path(__file__).parent.parent
KEY = "lockstep-sweep"
# The columns of `dvc exp show` that tell recipes apart; it shows all others without --drop.
SHOWN = r"Experiment|.*evaluate\S*:accuracy|accuracy_(low|high)|train\.(model|epochs|batch|optimizer|learning_rate)"
Points = dict[str, dict[str, Any]]  # the params of each experiment, by its name


@flow(name="lockstep-sweep", persist_result=False)
async def sweep(
    names: list[str] | None = None,
    grid: dict[str, list[Any]] | None = None,
    limit: Annotated[int, Field(ge=1)] = 1,
) -> State[Any]:
    """Run sets of experiments.yaml, and every point of a grid, each as a DVC experiment in a copy of the folder.

    Args:
        names: sets of experiments.yaml
        grid: values to combine, by param, as in {"train.epochs" - [1, 2], "train.seed" - [0, 1, 2]}
        limit: how many run side by side
    """
    log, turn = get_run_logger(), asyncio.Semaphore(limit)
    try:
        points = chosen(names or [], grid or {})
        await repair_lockfile(ROOT, read_dag(ROOT), log.info)
        for params in points.values():
            await validate_params(
                ROOT, with_changes(ROOT / "params.yaml", params), sorted({name.split(".")[0] for name in params})
            )
    except FlowError as problem:
        log.error(str(problem))
        return Failed(message=str(problem))
    states = dict(zip(points, await asyncio.gather(*(point(*item, turn) for item in points.items())), strict=True))
    await acreate_table_artifact(await results(points, log.info), KEY, ", ".join(points))
    failed = [name for name, state in states.items() if not state.is_completed()]
    if failed:
        log.error(f"failed: {', '.join(failed)}")
        return Failed(message=f"failed: {', '.join(failed)}")
    return Completed(message=f"{len(points)} experiments: {', '.join(points)}")


async def point(name: str, params: dict[str, Any], turn: asyncio.Semaphore) -> State[Any]:
    """The task run of one experiment. When it has succeeded, it replaces a former one of its name."""
    new = f"{name}-new"

    async def experiment() -> State[Any]:
        async with turn:
            say = get_run_logger().info
            await dvc(["exp", "remove", new], ROOT)  # what a run that was killed may have left
            done = await dvc(["exp", "run", "--temp", "--name", new, *set_param_flags(params)], ROOT, say=say, wait=say)
            if not done.status:
                done = await dvc(["exp", "rename", "--force", new, name], ROOT, say=say, wait=say)
        if done.status:
            return Failed(message="\n".join(done.lines[-10:]))
        return Completed(message=f"dvc exp apply {name}")

    run: Any = Task(experiment, name="experiment", task_run_name=name, cache_policy=NO_CACHE)
    state: State[Any] = await run(return_state=True)
    return state


def chosen(names: list[str], grid: Mapping[str, list[Any]]) -> Points:
    """DVC names experiments as git does branches."""
    known = read_experiments(ROOT)
    unknown = [name for name in names if name not in known]
    if unknown or not (names or grid):
        what = (
            f"unknown experiments: {', '.join(unknown)}"
            if unknown
            else "name the experiments to run, or --all, or a grid"
        )
        raise FlowError(f"{what}; experiments.yaml has {', '.join(known)}")
    if empty := [key for key, values in grid.items() if not values]:
        raise FlowError(f"{', '.join(empty)}: no values to combine")
    points = {name.replace("_", "-"): known[name] for name in names}
    for values in itertools.product(*grid.values()) if grid else []:
        params = dict(zip(grid, values, strict=True))
        points["-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in params.items())] = params
    return {
        "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name): of
        for name, of in points.items()
    }


def read_experiments(root: Path) -> Points:
    path = root / "experiments.yaml"
    try:
        content = YAML(typ="safe", pure=True).load(path) or {}
    except OSError as error:
        raise FlowError(f"{path.name}: {error.strerror}: it has the sets of params that have a name") from error
    except YAMLError as error:
        raise FlowError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(of, dict | None) for of in content.values()):
        raise FlowError(f"{path.name}: each entry is a set of params, as in 'name: {{train.epochs: 3}}'")
    return {str(name): of or {} for name, of in content.items()}


async def results(points: Points, wait: Callable[[str], None]) -> list[dict[str, str]]:
    """The rows of `dvc exp show` for these experiments and for the commit that they started from."""
    listed = await dvc(["exp", "show", "--csv", "--only-changed", "--drop", dropped(points, "rev")], ROOT, wait=wait)
    rows = list(csv.DictReader(line for line in listed.lines if "," in line))
    shown = [{**row, "Experiment": row["Experiment"] or "HEAD"} for row in rows if row.get("rev") != "workspace"]
    order = ["HEAD", *points]
    wanted = sorted(
        (row for row in shown if row["Experiment"] in order), key=lambda row: order.index(row["Experiment"])
    )
    return [{name.rpartition("/")[2]: value for name, value in row.items() if name != "rev"} for row in wanted]


def dropped(points: Points, *more: str) -> str:
    """What `dvc exp show` is to drop: all columns but those that tell these experiments apart."""
    params = {re.escape(name) for params in points.values() for name in params}
    return f"^(?!({'|'.join([SHOWN, *sorted(params), *more])})$)"


def command(
    *names: str,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    grid: Annotated[tuple[str, ...], Parameter(name="-S", negative=())] = (),
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
) -> None:
    """Run the experiments NAMES of experiments.yaml, each in a copy of the folder; then show the table.

    Parameters
    ----------
    every
        Run all of experiments.yaml.
    grid
        Combine values: -S train.epochs=[1,2] -S train.seed=[0,1,2] makes six experiments.
    limit
        How many run side by side.
    """
    values = {name: value if isinstance(value, list) else [value] for name, value in parse_overrides(grid).items()}
    known = [*read_experiments(ROOT)] if every else [*names]
    points = chosen(known, values)
    status = run_flow(sweep, names=known, grid=values, limit=limit)
    run_command(["dvc", "exp", "show", "--no-pager", "--md", "--only-changed", "--drop", dropped(points)], ROOT)
    sys.exit(status)


if __name__ == "__main__":
    run_cli(command, "python -m flows.experiments")
