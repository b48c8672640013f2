"""Keeps a folder at the model that has a stage of the registry, so that a service of that folder follows the stage."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.dvc.dag import read_dag
from flows.errors import FlowError
from flows.pipeline import ROOT
from flows.promote import fetch_model, staged_commit
from flows.terminal import run_cli
from flows.workspace import fetch_origin


def follow_cli(
    *,
    stage: str = "prod",
    folder: Path = Path("served"),
    interval: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0,
) -> None:
    """Put the model that has a stage into a folder, and again whenever another version gets the stage; until Ctrl-C.

    Serve the folder in another terminal, for example:

    python -m flows.follow --stage prod --folder served

    lockstep serve --model served/model.onnx

    Parameters
    ----------
    stage
        The stage to follow; flows/promote.py gives it to a version.
    folder
        Where the model, its golden sample and its certificate are put.
    interval
        Seconds between two looks at the tags, which are fetched from origin if there is one.
    """
    asyncio.run(follow(stage, folder.absolute(), interval))


async def follow(stage: str, folder: Path, interval: float) -> None:
    current, reported = None, None
    while True:
        try:
            commit = await newest_commit(stage)
            if commit != current:
                await replace_model(folder, commit)
                print(f"{folder}: the model of {commit[:10]} is {stage}", flush=True)
            current, reported = commit, None
        except (
            FlowError,
            OSError,
        ) as error:  # origin or the DVC remote may be away for a while: the folder stays as it is
            if str(error) != reported:
                print(f"{folder}: not updated: {error}", flush=True)
            reported = str(error)
        await asyncio.sleep(interval)


async def newest_commit(stage: str) -> str:
    await fetch_origin(ROOT)
    if not (commit := await staged_commit(stage)):
        raise FlowError(f"no model is {stage}: python -m flows.promote --stage {stage}")
    return commit


async def replace_model(folder: Path, commit: str) -> None:
    """Each file is replaced by a rename. A service loads them once all three agree, and until then keeps its model."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as tmp:
        await fetch_model(read_dag(ROOT), commit, Path(tmp) / "new")
        for path in (Path(tmp) / "new").iterdir():
            path.replace(folder / path.name)


if __name__ == "__main__":
    run_cli(follow_cli, "python -m flows.follow")
