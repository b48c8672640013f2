"""The front door, `make run`: chooses the data set, in params.yaml, runs the pipeline and shows what came of it."""

import asyncio
import shlex
import sys
from pathlib import Path

from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile
from flows.dvc.params_file import get_param, set_param
from flows.environment import run_command
from flows.pipeline import pipeline
from flows.server import temporary_server
from flows.terminal import run_cli, run_flow

ROOT = Path(__file__).parent.parent
DATASET = "download.dataset"
UNAVAILABLE = 69  # what the download stage ends with if no mirror delivers
BACK = "back to MNIST, with a network or LOCKSTEP_MIRROR: make run DATASET=mnist"


def front_door(dataset: str = "") -> None:
    """Run the pipeline on DATASET, or on what params.yaml names, or on the embedded digits if no mirror answers."""
    server = temporary_server()  # it starts while the data set is chosen
    asyncio.run(repair_lockfile(ROOT, read_dag(ROOT), print))
    note = choose(ROOT, dataset)
    print(f"{note}\n", flush=True)
    status = run_flow(pipeline, server)
    print(f"\n{note}")
    sys.exit(status)


def choose(root: Path, wanted: str) -> str:
    """Set the data set in params.yaml where it must change; gives the line that says which one it is and why."""
    params = root / "params.yaml"
    before = params.read_bytes()
    if wanted and wanted != get_param(params, DATASET):
        set_param(params, DATASET, wanted)
    status = check(root)
    if status == UNAVAILABLE and not wanted:
        name = get_param(params, DATASET)
        set_param(params, DATASET, "digits")
        return f"No mirror delivers {name}: {DATASET} is now digits, the embedded set, in params.yaml; {BACK}"
    if status:
        params.write_bytes(before)
        sys.exit(status)
    name = get_param(params, DATASET)
    return f"The data set is {name}, as params.yaml says" + (f"; {BACK}" if name == "digits" else "")


def check(root: Path) -> int:
    """0 if the data set is here, or can be had from DVC's cache or a mirror; else the download stage's status."""
    run_command(["dvc", "checkout", "--quiet", "download"], root, quiet=True)  # from the cache, if it is there
    if run_command(["dvc", "status", "--quiet", "download"], root, quiet=True) == 0:
        return 0
    return run_command([*shlex.split(read_dag(root).stages["download"].command), "--check"], root)


if __name__ == "__main__":
    run_cli(front_door, "python -m flows.make_run")
