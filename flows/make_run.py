"""`make run`: chooses the data set, which it writes to params.yaml, runs the pipeline and shows the result."""

import asyncio
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from ruamel.yaml import YAML

from flows.dvc.dag import read_dag
from flows.dvc.lock_file import repair_lockfile
from flows.dvc.params_file import (
    edit_params_text,
    flatten,
    get_param,
    load_yaml,
    read_params,
    set_param,
    write_params,
)
from flows.environment import environment, run_command
from flows.errors import FlowError
from flows.experiments import read_experiments
from flows.parameters import param_comment, validate_params
from flows.pipeline import pipeline
from flows.plan import format_param
from flows.server import start_temporary_server
from flows.terminal import run_cli, run_flow

ROOT = Path(__file__).parent.parent
DATASET = "download.dataset"
OWN = "own"
UNAVAILABLE = 69  # the download stage's exit status if no mirror delivers
HOW_TO_SWITCH = "back to MNIST, with a network or LOCKSTEP_MIRROR: make run DATASET=mnist"


def dataset_help() -> str:
    """What params.yaml says of the data sets."""
    section, _, key = DATASET.partition(".")
    comment = param_comment(load_yaml(YAML(), ROOT / "params.yaml")[section], key)
    return f"Write this data set to params.yaml first: {comment}."


def make_run_cli(
    *,
    dataset: Annotated[str, Parameter(help=dataset_help())] = "",
    experiment: str = "",
) -> None:
    """Run the whole pipeline and show the result.

    Without --dataset it uses the data set of params.yaml, or the embedded digits if no mirror delivers that. For
    example:

    python -m flows.make_run --dataset digits

    Parameters
    ----------
    experiment
        Write the values of this set of experiments.yaml to params.yaml first, and say which of them changed.
    """
    changes = find_experiment(ROOT, experiment) if experiment else {}
    wait_for_server = start_temporary_server()  # it starts while the data set is chosen
    asyncio.run(repair_lockfile(ROOT, read_dag(ROOT), print))
    choice = choose_dataset(ROOT, dataset, experiment, changes)
    print(f"{choice.note}\n", flush=True)
    status = run_flow(pipeline, wait_for_server)
    print("\n" + "\n\n".join(filter(None, [choice.advice, choice.note])))
    sys.exit(status)


@dataclass(frozen=True)
class Choice:
    note: str  # names the data set, and says why
    advice: str  # on your own images, if it is not taken with this run


def find_experiment(root: Path, name: str) -> dict[str, Any]:
    """The params of a set of experiments.yaml."""
    known = read_experiments(root)
    if name not in known:
        raise FlowError(f"unknown experiment: {name}; experiments.yaml has {', '.join(known)}")
    return known[name]


def choose_dataset(
    root: Path, requested: str, experiment: str = "", changes: Mapping[str, Any] | None = None
) -> Choice:
    """Write the CHANGES of an experiment and the data set to params.yaml, and print what changed.

    If the data set cannot be had, params.yaml stays as it was.
    """
    params = root / "params.yaml"
    before = params.read_bytes()
    applied = apply_experiment(params, experiment, changes or {}) if experiment else ""
    if requested and requested != get_param(params, DATASET):
        set_param(params, DATASET, requested)
    name = get_param(params, DATASET)
    status, advice = check_dataset(root, name)
    if status and (requested or status != UNAVAILABLE):
        params.write_bytes(before)
        sys.exit(status)
    if applied:
        print(f"{applied}\n", flush=True)
    if status:
        set_param(params, DATASET, "digits")
        note = f"No mirror delivers {name}: {DATASET} is now digits, the embedded set, in params.yaml; {HOW_TO_SWITCH}"
        return Choice(note, "")
    note = f"The data set is {name}, as params.yaml says" + (f"; {HOW_TO_SWITCH}" if name == "digits" else "")
    return Choice(note, "" if experiment else advice)


def apply_experiment(params: Path, name: str, changes: Mapping[str, Any]) -> str:
    """Write the changes to params.yaml, if they are valid; returns lines that name what has another value now."""
    before, text = flatten(read_params(params)), edit_params_text(params, changes)
    asyncio.run(validate_params(params.parent, text, sorted({key.partition(".")[0] for key in changes})))
    write_params(params, text)
    after = flatten(read_params(params))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not changed:
        return f"params.yaml has the values of the set {name} of experiments.yaml already"
    width = max(map(len, changed))
    lines = [f"  {key:<{width}}  {format_param(before, key)} -> {format_param(after, key)}" for key in changed]
    return "\n".join([f"The set {name} of experiments.yaml changed in params.yaml:", *lines])


def check_dataset(root: Path, name: str) -> tuple[int, str]:
    """0 if the data set is in the folder, in DVC's cache or on a mirror, else the download stage's exit status.

    Of your own images the stage prints what they are, before DVC reads them: DVC does not end where there is a FIFO,
    and to it a new class folder without images, or a linked folder inside a class, is no change. The second value is
    the stage's advice.
    """
    command = [*shlex.split(read_dag(root).stages["download"].command), "--check"]
    if name == OWN:
        result = subprocess.run(command, cwd=root, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
        if text := result.stdout.strip():
            print(f"{text}\n", flush=True)
        return result.returncode, text.rpartition("\n\n")[2]  # the advice is the last paragraph
    run_command(["dvc", "checkout", "--quiet", "download"], root, quiet=True)  # from the cache
    if run_command(["dvc", "status", "--quiet", "download"], root, quiet=True) == 0:
        return 0, ""
    return run_command(command, root), ""


if __name__ == "__main__":
    run_cli(make_run_cli, "python -m flows.make_run")
