"""Fixtures: a small data set in MNIST's format that trains in seconds, and the outputs of the stages for it."""

import gzip
import json
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.arithmetic import PORTABLE_ENV

os.environ.update(PORTABLE_ENV)  # before numpy and torch are imported

import numpy as np
import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from served import Service

ROOT = Path(__file__).parent.parent
# Changes of params.yaml for short runs. One thread, since two test processes run at a time.
QUICK_PARAMS: dict[str, Any] = {
    "download.dataset": "mnist",
    "machine.device": "cpu",
    "machine.threads": 1,
    "preprocess.validation_fraction": 0.1,
    "train.model": "reference_e",
    "train.stem": "learned",
    "train.optimizer": "adamw",
    "train.learning_rate": 0.005,
    "train.betas": [0.9, 0.999],
    "train.epochs": 4,
    "train.min_steps": 1,
    "train.batch": 50,
    "train.points": 5,
    "train.rotate": 0,
    "evaluate.tsne_images": 30,
    "validate_parity.sample_images": 1000,
    "validate_parity.reference_images": 4,
}

WriteParams = Callable[..., Path]
# A shell makes background jobs ignore SIGINT, and the processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def write_params(path: Path, changes: dict[str, Any]) -> Path:
    """Write the committed params.yaml with QUICK_PARAMS and the given changes, such as {"train.epochs": 1}."""
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for name, value in {**QUICK_PARAMS, **changes}.items():
        section, key = name.split(".")
        content[section][key] = value
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


@pytest.fixture
def params(tmp_path: Path) -> WriteParams:
    """Write a params file and return its path: params({"train.epochs": 1})."""

    def write(changes: dict[str, Any] | None = None) -> Path:
        return write_params(tmp_path / "params.yaml", changes or {})

    return write


def idx_bytes(array: np.ndarray) -> bytes:
    """A gzipped IDX file of a uint8 array."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def synthetic_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) with a bright rectangle whose position depends on the class, and their labels in turn."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 4)
        top, left = 2 + row * 8 + generator.integers(0, 3), 1 + column * 6 + generator.integers(0, 3)
        images[index, top : top + 6, left : left + 5] = generator.integers(180, 256)
    return images, labels


def write_raw(folder: Path, train: int = 600, test: int = 200) -> Path:
    """Write the outputs of download for a small data set in MNIST's format."""
    folder.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = synthetic_digits(count, seed)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(labels))
    source = {"dataset": "mnist", "origin": "made", "preparation": "mnist", "classes": list("0123456789"), "files": {}}
    (folder / "source.json").write_text(json.dumps(source))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw")


def stage_arguments(folder: Path, stage: Callable[..., None], **given: Any) -> dict[str, Any]:
    """The given arguments; for every other flag of the stage in dvc.yaml: FOLDER / the file name that dvc.yaml has."""
    command = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"][stage.__name__]["cmd"]
    flags = re.findall(r"--(\S+) (\S+)", command)
    return {flag.replace("-", "_"): folder / Path(path).name for flag, path in flags} | given


def run_stage_in(folder: Path, stage: Callable[..., None], **given: Any) -> None:
    """Call a stage. Files that are not given are in FOLDER, as in run_stage_in(tmp_path, train, splits=splits)."""
    stage(**stage_arguments(folder, stage, **given))


def stage_command(folder: Path, stage: Callable[..., None], **given: Any) -> list[str]:
    """The command line that run_stage_in stands for, for tests that need a process of its own."""
    arguments = stage_arguments(folder, stage, **given).items()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in arguments]
    return [sys.executable, "-m", f"stages.{stage.__name__}", *flags]


@pytest.fixture(scope="session")
def stage_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of all stages for the small data set. Do not write into it."""
    from stages.evaluate import evaluate
    from stages.export_onnx import export_onnx
    from stages.preprocess import preprocess
    from stages.train import train
    from stages.validate_parity import validate_parity

    folder = tmp_path_factory.mktemp("made")
    write_params(folder / "params.yaml", {})
    write_raw(folder / "raw")
    for stage in (preprocess, train, evaluate, export_onnx, validate_parity):
        run_stage_in(folder, stage)
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove environment variables that would change what the project does; restore the working directory."""
    for name in ("LOCKSTEP_MIRROR", "DVC_STAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    working_directory = Path.cwd()
    yield
    os.chdir(working_directory)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after its first `dvc repro`, committed. Copy it; do not change it."""
    from repositories import DIGITS_PARAMS, STAGES, commit_all, create_project, executed_stages, run_dvc

    folder = create_project(tmp_path_factory.mktemp("finished") / "project", DIGITS_PARAMS)
    assert executed_stages(run_dvc(folder, "repro")) == STAGES
    commit_all(folder)
    return folder


@pytest.fixture
def project(finished_project: Path, tmp_path: Path) -> Path:
    """A copy of the finished repository, with DVC's cache, in a folder with spaces in its name."""
    return Path(shutil.copytree(finished_project, tmp_path / "my own project", symlinks=True))


@pytest.fixture(scope="session")
def prefect_api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a real Prefect server, which all tests of a process share."""
    from toys import free_port, prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect"), free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def template_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy after its first `dvc repro`, committed. Copy it; do not change it."""
    from repositories import commit_all, run_dvc
    from toys import create_toy_repository

    folder = create_toy_repository(tmp_path_factory.mktemp("ran") / "toy")
    run_dvc(folder, "repro")
    commit_all(folder)
    return folder


@pytest.fixture
def toy_repository(tmp_path: Path) -> Path:
    """A repository with a small pipeline, in a folder with a space in its name."""
    from toys import create_toy_repository

    return create_toy_repository(tmp_path / "a toy")


@pytest.fixture(scope="session")
def test_set(stage_outputs: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images of the small data set, uint8[200, 1, 28, 28], and their labels."""
    return np.load(stage_outputs / "splits" / "test-images.npy"), np.load(stage_outputs / "splits" / "test-labels.npy")


@pytest.fixture(scope="session")
def service(stage_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Service"]:
    """The HTTP service with the model of the small data set. Do not change its files."""
    from served import run_service

    folder = tmp_path_factory.mktemp("service")
    with run_service(
        folder, stage_outputs / "model.onnx", "--report", str(stage_outputs / "evaluate.json")
    ) as running_service:
        yield running_service


@pytest.fixture
def model_copy(stage_outputs: Path, tmp_path: Path) -> Path:
    """A copy of the model with its golden sample and certificate, which a test may change."""
    (tmp_path / "served").mkdir()
    for name in ("model.onnx", "golden.json", "certificate.json", "CARD.md"):
        shutil.copyfile(stage_outputs / name, tmp_path / "served" / name)
    return tmp_path / "served" / "model.onnx"


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual network trained on made pictures of signs in colour."""
    from served import train_on_made_pictures

    return train_on_made_pictures(tmp_path_factory.mktemp("colour"))


@pytest.fixture(scope="session")
def handwriting_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on scikit-learn's handwritten digits, prepared like MNIST's."""
    from served import train_on_handwriting

    return train_on_handwriting(tmp_path_factory.mktemp("handwritten"))
