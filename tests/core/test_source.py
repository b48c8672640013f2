"""A stage whose params or source changed while it ran fails, so that DVC does not record what did not run."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from toys import wait_until

Params = Callable[..., Path]


@pytest.fixture
def copy_of_stages(tmp_path: Path, params: Params) -> Path:
    """A folder with the stages' source and a params file."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    params({"train.epochs": 0, "train.min_steps": 400, "train.points": 400})
    return tmp_path


def train_during(copy_of_stages: Path, splits: Path, change: Callable[[], object]) -> tuple[int, str]:
    """The exit status and last line of a training during which `change` is called."""
    names = ("weights", "history", "trace", "report", "environment", "checkpoints", "pretrained")
    flags = [word for name in names for word in (f"--{name}", str(copy_of_stages / "out" / name))]
    command = [sys.executable, "-m", "stages.train", "--params", "params.yaml", "--splits", str(splits), *flags]
    with subprocess.Popen(
        command, cwd=copy_of_stages, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: (copy_of_stages / "out" / "history").exists() or process.poll() is not None, 60)
        change()
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors.strip().splitlines()[-1] if errors.strip() else ""


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_param_of_the_stage_that_changed_fails_it(copy_of_stages: Path, stage_outputs: Path) -> None:
    def change() -> None:
        replace(copy_of_stages / "params.yaml", '"learning_rate": 0.005', '"learning_rate": 0.001')

    assert train_during(copy_of_stages, stage_outputs / "splits", change) == (
        1,
        "train: train.learning_rate changed while the stage ran: its outputs are of the version before; run it again",
    )


def test_a_source_file_of_the_stage_that_changed_fails_it(copy_of_stages: Path, stage_outputs: Path) -> None:
    def change() -> None:
        replace(copy_of_stages / "stages" / "training" / "history.py", "FLUSH_INTERVAL = 50", "FLUSH_INTERVAL = 51")

    status, line = train_during(copy_of_stages, stage_outputs / "splits", change)
    assert status == 1
    assert line.startswith("train: stages/training/history.py changed while the stage ran")


def test_what_the_stage_does_not_depend_on_may_change(copy_of_stages: Path, stage_outputs: Path) -> None:
    def change() -> None:
        replace(copy_of_stages / "params.yaml", '"min_lift": 0.5', '"min_lift": 0.6')
        replace(copy_of_stages / "stages" / "evaluate.py", "[:12]", "[:13]")

    assert train_during(copy_of_stages, stage_outputs / "splits", change)[0] == 0


def test_the_consumers_preparation_is_source_too(tmp_path: Path) -> None:
    """The stages read images with modules of lockstep/, which are deps of theirs."""
    for package in ("stages", "lockstep"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import pathlib; from stages.core.source import changed_source, snapshot_source; snapshot_source();"
        "import stages.preprocess; [path.write_text('#') for path in pathlib.Path('lockstep').glob('*.py')];"
        "print(*changed_source())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    modules = ("__init__", "decoding", "errors", "fitting")
    assert done.stdout.split() == [f"lockstep/{name}.py" for name in modules]
