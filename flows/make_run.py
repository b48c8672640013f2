"""`make run`: chooses the data set, which it writes to params.yaml, runs the pipeline and shows the result."""

import asyncio
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    read_experiments,
    read_params,
    set_param,
    write_params,
)
from flows.environment import environment, run_command
from flows.errors import FlowError
from flows.parameters import param_comment, validate_params
from flows.plan import format_param
from flows.server import start_temporary_server
from flows.terminal import run_cli, run_flow
from flows.up_to_date import format_without_server, plan_without_server

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
    asyncio.run(repair_lockfile(ROOT, read_dag(ROOT), print))
    with restored_on_failure(ROOT / "params.yaml"):
        changed = choose_dataset(ROOT, dataset, experiment, changes)
        is_own = get_param(ROOT / "params.yaml", DATASET) == OWN
        advice = survey_own_images(ROOT) if is_own else ""
        plan = plan_without_server(ROOT)
        wait_for_server = None if plan else start_temporary_server()  # it starts while the mirrors are asked
        note = describe_dataset(ROOT) if plan or is_own else find_dataset(ROOT, dataset)
    print("\n\n".join(filter(None, [changed, note])) + "\n", flush=True)
    if plan:
        print(format_without_server(ROOT, plan))
        status = 0
    else:
        from flows.pipeline import pipeline  # imports Prefect, which takes a second

        status = run_flow(pipeline, wait_for_server)
    print("\n" + "\n\n".join(filter(None, [advice if not experiment else "", note])))
    sys.exit(status)


@contextmanager
def restored_on_failure(path: Path) -> Iterator[None]:
    """If the block raises an error, or exits, the file is as it was."""
    before = path.read_bytes()
    try:
        yield
    except BaseException:
        path.write_bytes(before)
        raise


def find_experiment(root: Path, name: str) -> dict[str, Any]:
    """The params of a set of experiments.yaml."""
    known = read_experiments(root)
    if name not in known:
        raise FlowError(f"unknown experiment: {name}; experiments.yaml has {', '.join(known)}")
    return known[name]


def choose_dataset(root: Path, requested: str, experiment: str, changes: Mapping[str, Any]) -> str:
    """Write the CHANGES of an experiment and the data set to params.yaml; returns what the experiment changed."""
    params = root / "params.yaml"
    changed = apply_experiment(params, experiment, changes) if experiment else ""
    if requested and requested != get_param(params, DATASET):
        set_param(params, DATASET, requested)
    return changed


def apply_experiment(params: Path, name: str, changes: Mapping[str, Any]) -> str:
    """Write the changes to params.yaml, if they are valid; returns lines that name what has another value now."""
    before, text = flatten(read_params(params)), edit_params_text(params, changes)
    if all(before.get(key) == value for key, value in flatten(changes).items()):
        return f"params.yaml has the values of the set {name} of experiments.yaml already"
    asyncio.run(validate_params(params.parent, text, sorted({key.partition(".")[0] for key in changes})))
    write_params(params, text)
    after = flatten(read_params(params))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    width = max(map(len, changed))
    lines = [f"  {key:<{width}}  {format_param(before, key)} -> {format_param(after, key)}" for key in changed]
    return "\n".join([f"The set {name} of experiments.yaml changed in params.yaml:", *lines])


def survey_own_images(root: Path) -> str:
    """Print what they are, before DVC reads them; returns the download stage's advice, or exits as the stage does.

    DVC does not end where there is a FIFO, and to it a new class folder without images, or a linked folder inside a
    class, is no change.
    """
    result = subprocess.run(
        check_command(root), cwd=root, env=environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if text := result.stdout.strip():
        print(f"{text}\n", flush=True)
    if result.returncode:
        sys.exit(result.returncode)
    return text.rpartition("\n\n")[2]  # the advice is the last paragraph


def check_command(root: Path) -> list[str]:
    """The command of the download stage that only checks whether the data set can be had."""
    return [*shlex.split(read_dag(root).stages["download"].command), "--check"]


def find_dataset(root: Path, requested: str) -> str:
    """Exit unless the data set is in the folder, in DVC's cache or on a mirror; returns a line that names it.

    If it was not REQUESTED and no mirror delivers it, the embedded set takes its place in params.yaml.
    """
    run_command(["dvc", "checkout", "--quiet", "download"], root, quiet=True)  # from the cache
    if run_command(["dvc", "status", "--quiet", "download"], root, quiet=True) == 0:
        return describe_dataset(root)
    status = run_command(check_command(root), root)
    if status and (requested or status != UNAVAILABLE):
        sys.exit(status)
    if not status:
        return describe_dataset(root)
    params = root / "params.yaml"
    name = get_param(params, DATASET)
    set_param(params, DATASET, "digits")
    return f"No mirror delivers {name}: {DATASET} is now digits, the embedded set, in params.yaml; {HOW_TO_SWITCH}"


def describe_dataset(root: Path) -> str:
    name = get_param(root / "params.yaml", DATASET)
    return f"The data set is {name}, as params.yaml says" + (f"; {HOW_TO_SWITCH}" if name == "digits" else "")


if __name__ == "__main__":
    run_cli(make_run_cli, "python -m flows.make_run")
