"""Helpers for tests of the consumer: a service in its own process, requests, certificates, and a trained network."""

import hashlib
import http.client
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT, idx_bytes, run_stage_in, write_params
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image
from ruamel.yaml import YAML
from toys import wait_until

from lockstep.certificate import hash_content
from stages.core.files import write_json


@dataclass
class Response:
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

    def request(
        self,
        path: str,
        body: Any = None,
        content_type: str | None = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            headers = {**({"content-type": content_type} if content_type else {}), **(headers or {})}
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            response = connection.getresponse()
            return Response(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def predict(self, body: bytes, content_type: str = "image/png", query: str = "") -> Response:
        return self.request(f"/predict{query}", body, content_type)

    def predict_prepared(self, *images: Any) -> Response:
        content = {"images": [np.asarray(image).tolist() for image in images]}
        return self.predict(json.dumps(content).encode(), "application/json")


@contextmanager
def run_service(folder: Path, model: Path, *flags: str, cwd: Path = ROOT) -> Iterator[Service]:
    """`python -m lockstep serve` in a process of its own, on a free port of loopback."""
    log = folder / "service.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lockstep", "serve", "--model", str(model), "--port", "0", *flags],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout
        lines = (re.search(r" at (http://\S+)", line) for line in process.stdout)
        match = next(filter(None, lines), None)
        assert match, log.read_text()
        service = Service(match[1], process, log)
        wait_until(lambda: is_ready(service), 30)
        yield service
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            process.stdout and process.stdout.close()


def is_ready(service: Service) -> bool:
    try:
        return service.request("/readyz").status == 200
    except OSError:
        return False


def train_on_handwriting(folder: Path) -> Path:
    """A proven model, trained on scikit-learn's 1,797 handwritten digits prepared like MNIST."""
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
    images = np.stack([prepare_like_mnist(enlarge(image), metadata)[0] for image in digits.images])
    raw = folder / "raw"
    raw.mkdir()
    for prefix, part in (("train", slice(0, 1600)), ("t10k", slice(1600, None))):
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx_bytes(images[part]))
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx_bytes(digits.target[part]))
    source = {"dataset": "mnist", "origin": "made", "preparation": "mnist", "classes": list("0123456789"), "files": {}}
    (raw / "source.json").write_text(json.dumps(source))
    recipe = {
        "preprocess.validation_fraction": 0.0,
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
    write_params(folder / "params.yaml", recipe)
    for stage in (preprocess, train, evaluate, export_onnx, validate_parity):
        run_stage_in(folder, stage)
    return folder / "model.onnx"


def train_on_made_pictures(folder: Path) -> Path:
    """A proven residual network for colour pictures of five kinds of sign, through all stages."""
    from benchmarks.made_images import class_folder, make_picture
    from stages.download import download
    from stages.evaluate import evaluate
    from stages.export_onnx import export_onnx
    from stages.preprocess import preprocess
    from stages.train import train
    from stages.validate_parity import validate_parity

    for kind in ("stop", "clinic", "exit", "danger", "main-road"):
        for index in range(40):
            path = folder / "own" / class_folder(kind) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            make_picture("signs", kind, str(index)).save(path)
    photos = YAML(typ="safe", pure=True).load(ROOT / "experiments.yaml")["photos"]
    small = {"preprocess.size": 32, "train.width": 16, "train.epochs": 0, "train.min_steps": 150, "train.points": 2}
    trained = {"train.optimizer": "muon", "train.betas": [0.7, 0.9], "train.learning_rate": 0.01}
    changes = {**photos, **trained, **small, "download.dataset": "own", "evaluate.min_accuracy": 0.6}
    write_params(folder / "params.yaml", changes)
    for stage in (download, preprocess, train, evaluate, export_onnx, validate_parity):
        run_stage_in(folder, stage)
    return folder / "model.onnx"


def certify(model: Path, **changes: Any) -> None:
    """Write the certificate that validate_parity would write of the current model and golden sample.

    `quality__accuracy=0.5` changes that value; None removes the key.
    """
    path = model.with_name("certificate.json")
    content = json.loads(path.read_text())
    hashes = {f"{name}_sha256": sha256_of(model.with_name(file)) for name, file in CERTIFIED_FILES.items()}
    for name, value in {**hashes, **changes}.items():
        *parents, key = name.split("__")
        section = content
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[key]
        else:
            section[key] = value
    content.pop("sha256", None)
    write_json(path, {**content, "sha256": hash_content(content)})


CERTIFIED_FILES = {"model": "model.onnx", "golden": "golden.json"}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def enlarge(image: np.ndarray) -> Image.Image:
    """Of one of scikit-learn's digits, 8 x 8 values within 0..16."""
    gray = Image.fromarray((image * 255 / 16).astype(np.uint8))
    return gray.resize((64, 64), Image.Resampling.BICUBIC)


def png_bytes(image: Image.Image | np.ndarray) -> bytes:
    data = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(data, "PNG")
    return data.getvalue()


def form_body(*files: tuple[str, bytes], field: str = "images") -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [
        f'--cut\r\ncontent-disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """The paths of a private and a public key."""
    private, key = (folder / f"{name}.pem", folder / f"{name}.pub"), ec.generate_private_key(ec.SECP256R1())
    secret = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private[0].write_bytes(key.private_bytes(pem, pkcs8, secret))
    private[1].write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private
