"""Named sets of params, from experiments.yaml, run as DVC experiments and shown."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from ruamel.yaml import YAML

from flows.environment import overrides, run

ROOT = Path(__file__).parent.parent
# The columns of `dvc exp show` that tell recipes apart; it shows all others without --drop.
SHOWN = r"Experiment|.*evaluate\S*:accuracy$|accuracy_(low|high)$|train\.(model|epochs|batch|optimizer|learning_rate)$"


def experiments(*names: str, every: Annotated[bool, Parameter(name="--all")] = False) -> None:
    """Run the experiments NAMES of experiments.yaml, or --all of them, each in a copy; then show the table."""
    known = read_experiments(ROOT)
    unknown = [name for name in names if name not in known]
    if unknown or not (names or every):
        what = f"unknown experiments: {', '.join(unknown)}" if unknown else "name the experiments to run, or --all"
        print(f"experiments: {what}; experiments.yaml has {', '.join(known)}", file=sys.stderr)
        sys.exit(1)
    failed = [name for name in (known if every else names) if start(ROOT, name, known[name])]
    run(["dvc", "exp", "show", "--no-pager", "--md", "--only-changed", "--drop", f"^(?!{SHOWN})"], ROOT)
    if failed:
        print(f"experiments: failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def read_experiments(root: Path) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(root / "experiments.yaml")
    return content


def start(root: Path, name: str, params: dict[str, Any]) -> int:
    """Run one experiment; a former one of its name is replaced."""
    shown = name.replace("_", "-")  # DVC names experiments as git does branches
    run(["dvc", "exp", "remove", shown], root, quiet=True)
    return run(["dvc", "exp", "run", "--temp", "--name", shown, *overrides(params)], root)


if __name__ == "__main__":
    App(name="python -m flows.experiments", default_command=experiments, result_action="return_none")()
