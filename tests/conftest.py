"""A small data set in MNIST's own form that a network learns in seconds, and what the stages make of it."""

import gzip
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.arithmetic import PORTABLE

os.environ.update(PORTABLE)  # before numpy and torch are imported

import numpy as np
import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from served import Service

ROOT = Path(__file__).parent.parent
# Quick, and one thread for each of the two test processes.
QUICK: dict[str, Any] = {
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
    "validate_parity.sample": 1000,
    "validate_parity.reference_images": 4,
}

Params = Callable[..., Path]
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def write_params(path: Path, changes: dict[str, Any]) -> Path:
    """params.yaml as committed, made quick, with the changes: {"train.epochs": 1}."""
    content = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for name, value in {**QUICK, **changes}.items():
        section, key = name.split(".")
        content[section][key] = value
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """Make a params file: params({"train.epochs": 1})."""

    def make(changes: dict[str, Any] | None = None) -> Path:
        return write_params(tmp_path / "params.yaml", changes or {})

    return make


def idx_bytes(array: np.ndarray) -> bytes:
    """A gzipped IDX file of a uint8 array."""
    header = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def drawn_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) that differ by class as digits do, in place, and labels, each class equally often."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 4)
        top, left = 2 + row * 8 + generator.integers(0, 3), 1 + column * 6 + generator.integers(0, 3)
        images[index, top : top + 6, left : left + 5] = generator.integers(180, 256)
    return images, labels


def write_raw(folder: Path, train: int = 600, test: int = 200) -> Path:
    """A folder as download leaves it, of a small data set in MNIST's form."""
    folder.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 1), ("t10k", test, 2)):
        images, labels = drawn_digits(count, seed)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(labels))
    source = {"dataset": "mnist", "origin": "made", "preparation": "mnist", "classes": list("0123456789"), "files": {}}
    (folder / "source.json").write_text(json.dumps(source))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what all stages made of the small data set: read it, and write elsewhere."""
    from stages.evaluate import evaluate
    from stages.export_onnx import export_onnx
    from stages.preprocess import preprocess
    from stages.train import train
    from stages.validate_parity import validate_parity

    folder = tmp_path_factory.mktemp("made")
    params, splits = write_params(folder / "params.yaml", {}), folder / "splits"
    preprocess(params=params, raw=write_raw(folder / "raw"), splits=splits, samples=folder / "samples.png")
    train(
        params=params,
        splits=splits,
        weights=folder / "weights.safetensors",
        history=folder / "history.csv",
        trace=folder / "trace.csv",
        report=folder / "train.json",
        environment=folder / "environment.json",
        checkpoints=folder / "checkpoints",
    )
    evaluate(
        params=params,
        splits=splits,
        weights=folder / "weights.safetensors",
        report=folder / "evaluate.json",
        predictions=folder / "predictions.csv",
        classes=folder / "classes.csv",
        reliability=folder / "reliability.csv",
        first_nine=folder / "first_nine.png",
        mistakes=folder / "mistakes.png",
        tsne=folder / "tsne.png",
    )
    export_onnx(
        params=params,
        weights=folder / "weights.safetensors",
        splits=splits,
        model=folder / "model.onnx",
        golden=folder / "golden.json",
    )
    validate_parity(
        params=params,
        splits=splits,
        weights=folder / "weights.safetensors",
        model=folder / "model.onnx",
        golden=folder / "golden.json",
        quality=folder / "evaluate.json",
        environment=folder / "environment.json",
        report=folder / "parity.json",
        measured=folder / "measured.csv",
        certificate=folder / "certificate.json",
    )
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the caller's that would change what the project does."""
    for name in ("LOCKSTEP_MIRROR", "DVC_STAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after its first `dvc repro`, committed. Copy it; do not change it."""
    from repositories import DIGITS, STAGES, commit, dvc, new_project, ran

    folder = new_project(tmp_path_factory.mktemp("finished") / "project", DIGITS)
    assert ran(dvc(folder, "repro")) == STAGES
    commit(folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """One's own copy, with DVC's cache, in a folder with spaces in its name."""
    return Path(shutil.copytree(finished, tmp_path / "my own project", symlinks=True))


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prefect server, which the tests of a process share."""
    from toys import free_port, prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect"), free_port()) as address:
        yield address


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A small pipeline in a repository of its own, in a folder with a space in its name."""
    from toys import new_toy

    return new_toy(tmp_path / "a toy")


@pytest.fixture(scope="session")
def tested(made: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test images of the small data set, uint8[200, 1, 28, 28], and their labels."""
    return np.load(made / "splits" / "test-images.npy"), np.load(made / "splits" / "test-labels.npy")


@pytest.fixture(scope="session")
def service(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Service"]:
    """The HTTP service of the small data set's network; do not change its files."""
    from served import running

    folder = tmp_path_factory.mktemp("service")
    with running(folder, made / "model.onnx", "--report", str(made / "evaluate.json")) as one:
        yield one


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A model beside its golden sample and certificate, to be changed."""
    (tmp_path / "served").mkdir()
    for name in ("model.onnx", "golden.json", "certificate.json"):
        shutil.copyfile(made / name, tmp_path / "served" / name)
    return tmp_path / "served" / "model.onnx"


@pytest.fixture(scope="session")
def handwritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows handwritten digits, prepared as MNIST's are."""
    from served import learn_handwriting

    return learn_handwriting(tmp_path_factory.mktemp("handwritten"))
