"""`make run`: chooses the data set, which it writes to params.yaml, runs the pipeline and shows the result."""

import asyncio
import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from ruamel.yaml import YAML

from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile
from flows.dvc.params_file import get_param, load_yaml, set_param
from flows.environment import run_command
from flows.parameters import param_comment
from flows.pipeline import pipeline
from flows.server import start_temporary_server
from flows.terminal import run_cli, run_flow

ROOT = Path(__file__).parent.parent
DATASET = "download.dataset"
UNAVAILABLE = 69  # the download stage's exit status if no mirror delivers
HOW_TO_SWITCH = "back to MNIST, with a network or LOCKSTEP_MIRROR: make run DATASET=mnist"


def dataset_help() -> str:
    """What params.yaml says of the data sets."""
    section, _, key = DATASET.partition(".")
    comment = param_comment(load_yaml(YAML(), ROOT / "params.yaml")[section], key)
    return f"Write this data set to params.yaml first: {comment}."


def make_run_cli(*, dataset: Annotated[str, Parameter(help=dataset_help())] = "") -> None:
    """Run the whole pipeline and show the result.

    Without --dataset it uses the data set of params.yaml, or the embedded digits if no mirror delivers that. For
    example:

    python -m flows.make_run --dataset digits
    """
    wait_for_server = start_temporary_server()  # it starts while the data set is chosen
    asyncio.run(repair_lockfile(ROOT, read_dag(ROOT), print))
    note = choose_dataset(ROOT, dataset)
    print(f"{note}\n", flush=True)
    status = run_flow(pipeline, wait_for_server)
    print(f"\n{note}")
    sys.exit(status)


def choose_dataset(root: Path, requested: str) -> str:
    """Write the data set to params.yaml if it changes; returns a line that names it and says why."""
    params = root / "params.yaml"
    before = params.read_bytes()
    if requested and requested != get_param(params, DATASET):
        set_param(params, DATASET, requested)
    name, status = get_param(params, DATASET), check_dataset(root)
    if status == UNAVAILABLE and not requested:
        set_param(params, DATASET, "digits")
        return f"No mirror delivers {name}: {DATASET} is now digits, the embedded set, in params.yaml; {HOW_TO_SWITCH}"
    if status:
        params.write_bytes(before)
        sys.exit(status)
    return f"The data set is {name}, as params.yaml says" + (f"; {HOW_TO_SWITCH}" if name == "digits" else "")


def check_dataset(root: Path) -> int:
    """0 if the data set is in the folder, in DVC's cache or on a mirror; else the download stage's exit status.

    A person's own images are looked at before DVC reads them: it does not end where there is a FIFO, and to it a new
    class folder without images, or a linked folder inside a class, is no change.
    """
    check = [*shlex.split(read_dag(root).stages["download"].command), "--check"]
    if get_param(root / "params.yaml", DATASET) == "own":
        return run_command(check, root)
    run_command(["dvc", "checkout", "--quiet", "download"], root, quiet=True)  # from the cache
    if run_command(["dvc", "status", "--quiet", "download"], root, quiet=True) == 0:
        return 0
    return run_command(check, root)


if __name__ == "__main__":
    run_cli(make_run_cli, "python -m flows.make_run")
