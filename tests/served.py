"""A real service in a process of its own, a network that knows handwritten digits, and requests."""

import hashlib
import http.client
import inspect
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT, idx_bytes, write_params
from PIL import Image
from toys import until

from lockstep.certificate import hash_content
from stages.core.files import write_json


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Service:
    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").strip("/").split(":")
        return host, int(port)

    def ask(self, path: str, body: Any = None, kind: str | None = None, method: str | None = None) -> Reply:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            headers = {"content-type": kind} if kind else {}
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            reply = connection.getresponse()
            return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def predict(self, body: bytes, kind: str = "image/png", query: str = "") -> Reply:
        return self.ask(f"/predict{query}", body, kind)

    def pixels(self, *images: Any) -> Reply:
        content = {"images": [np.asarray(image).tolist() for image in images]}
        return self.predict(json.dumps(content).encode(), "application/json")


@contextmanager
def running(folder: Path, model: Path, *flags: str) -> Iterator[Service]:
    """`python -m lockstep serve` in a process of its own, on a free port of loopback."""
    log = folder / "service.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lockstep", "serve", "--model", str(model), "--port", "0", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, log.read_text()
        service = Service(found[0], process, log)
        until(lambda: answers(service), 30)
        yield service
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            process.stdout and process.stdout.close()


def answers(service: Service) -> bool:
    try:
        return service.ask("/readyz").status == 200
    except OSError:
        return False


def learn_handwriting(folder: Path) -> Path:
    """The proven model of a network that learnt scikit-learn's 1,797 handwritten digits, prepared as MNIST's were."""
    from sklearn.datasets import load_digits

    from lockstep.metadata import ModelMetadata
    from lockstep.preparation import prepare_like_mnist
    from stages.evaluate import evaluate
    from stages.export_onnx import export_onnx
    from stages.preprocess import preprocess
    from stages.train import train
    from stages.validate_parity import validate_parity

    metadata = ModelMetadata(tuple("0123456789"), 1, 28, 28, "mnist", "digits", {})
    digits = load_digits()
    images = np.stack([prepare_like_mnist(enlarged(image), metadata)[0] for image in digits.images])
    raw = folder / "raw"
    raw.mkdir()
    for prefix, part in (("train", slice(0, 1600)), ("t10k", slice(1600, None))):
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images[part]))
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(digits.target[part]))
    source = {"dataset": "mnist", "origin": "made", "preparation": "mnist", "classes": list("0123456789"), "files": {}}
    (raw / "source.json").write_text(json.dumps(source))
    recipe = {
        "preprocess.validation": 0.0,
        "train.monitor": "none",
        "train.calibrate": "none",
        "train.model": "compact",
        "train.width": 16,
        "train.stem": "whitened",
        "train.optimizer": "muon",
        "train.betas": [0.7, 0.9],
        "train.batch": 128,
        "train.min_steps": 500,
        "train.rotate": 10,
        "train.zoom": 0.1,
        "evaluate.min_accuracy": 0.9,
    }
    params, splits = write_params(folder / "params.yaml", recipe), folder / "splits"
    preprocess(params=params, raw=raw, splits=splits, samples=folder / "samples.png")

    def run(stage: Callable[..., None], **others: str) -> None:
        """With files in the folder, each named as its flag but for those given."""
        known = {"params": params, "splits": splits, "model": folder / "model.onnx", "golden": folder / "golden.json"}
        names = [name for name, each in inspect.signature(stage).parameters.items() if each.default is each.empty]
        stage(**{name: known.get(name, folder / others.get(name, name)) for name in names})

    run(train, report="train.json")
    run(evaluate, report="quality", mistakes="mistakes.png", tsne="tsne.png", first_nine="first_nine.png")
    run(export_onnx)
    run(validate_parity, report="parity.json", certificate="certificate.json")
    return folder / "model.onnx"


def certify(model: Path, **changes: Any) -> None:
    """Write a certificate, as validate_parity would, of the model and the golden sample beside it as they are now.

    `quality__accuracy=0.5` changes what stands there; None takes it away.
    """
    path = model.with_name("certificate.json")
    content = json.loads(path.read_text())
    hashes = {f"{name}_sha256": sha256(model.with_name(file)) for name, file in FILES.items()}
    for name, value in {**hashes, **changes}.items():
        *above, key = name.split("__")
        part = content
        for each in above:
            part = part[each]
        if value is None:
            del part[key]
        else:
            part[key] = value
    content.pop("sha256", None)
    write_json(path, {**content, "sha256": hash_content(content)})


FILES = {"model": "model.onnx", "golden": "golden.json"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def enlarged(image: np.ndarray) -> Image.Image:
    grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
    return grey.resize((64, 64), Image.Resampling.BICUBIC)


def png(picture: Any, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    return data.getvalue()


def form(*files: tuple[str, bytes], field: str = "images") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [
        f'--cut\r\ncontent-disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"
