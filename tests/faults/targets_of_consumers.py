"""Fuzz targets: pictures, a model with what proves it, and HTTP requests."""

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from conftest import ROOT, synthetic_digits
from fuzz_target import Target
from mutations import mutate_bytes, mutate_json, serialize
from valid_inputs import HTTP_TOKENS, JSON_TOKENS, PNG_START, image_files, repair_png, tiny_model, valid_png

STATUSES = (200, 400, 403, 404, 405, 408, 411, 413, 415, 422, 431, 503)
PUBLISHED = ROOT / "lockstep" / "published"


def picture(folder: Path) -> Target:
    """Image files of every format and mode that is supported, up to the network's input."""
    from lockstep.decoding import MAX_PIXELS, open_image
    from lockstep.errors import ImageError
    from lockstep.metadata import ModelMetadata
    from lockstep.preparation import prepare_image

    valid = image_files()
    ways = [
        ModelMetadata(("0",), 1, 28, 28, "mnist", "mnist", {}),
        *(ModelMetadata(("0",), 3, 32, 32, "resize", "own", {}, fit) for fit in ("stretch", "crop", "pad")),
    ]

    def make(generator: Random) -> tuple[bytes, int, int]:
        data = mutate_bytes(generator, valid)
        if data.startswith(PNG_START) and generator.random() < 0.8:
            data = repair_png(data)
        limit = MAX_PIXELS if generator.random() < 0.02 else 1 << 20
        return data, generator.randrange(len(ways)), limit

    def use(damaged: tuple[bytes, int, int]) -> None:
        data, way, limit = damaged
        pixels = prepare_image(open_image(data, limit), ways[way])
        assert pixels.dtype == np.uint8
        assert pixels.shape == ways[way].shape

    return Target([(data, 1, MAX_PIXELS) for data in valid], make, use, (ImageError,))


def metadata(_: Path) -> Target:
    """The metadata_props of an ONNX file."""
    from lockstep.errors import LockstepError
    from lockstep.metadata import read_metadata
    from lockstep.rejection import read_reject_rule

    classes = json.dumps(list("0123456789"))
    valid = {
        "classes": classes, "input": json.dumps({"shape": ["batch", 1, 28, 28], "dtype": "uint8"}), "fit": "stretch",
        "preparation": "mnist", "dataset": "mnist", "reject_below": "0.5", "reject_roughness": "[0.01, 0.2]",
    }  # fmt: skip

    def make(generator: Random) -> dict[str, str]:
        properties = dict(valid)
        key = generator.choice(list(valid))
        if generator.random() < 0.2:
            del properties[key]
            return properties
        if generator.random() < 0.4:
            data = mutate_bytes(generator, [valid[key].encode()], JSON_TOKENS)
        else:
            try:
                content = json.loads(valid[key])
            except ValueError:
                content = valid[key]
            data = serialize(generator, mutate_json(generator, content))
        properties[key] = data.decode(errors="surrogateescape")
        return properties

    def use(properties: dict[str, str]) -> None:
        found = read_metadata(properties, "model.onnx")
        assert all(isinstance(side, int) and side > 0 for side in found.shape)
        assert len(set(found.classes)) == len(found.classes) == len(json.loads(properties["classes"]))
        json.dumps(found.classes, ensure_ascii=False).encode()
        read_reject_rule(properties, "model.onnx")

    return Target([valid], make, use, (LockstepError,))


def model_file(folder: Path) -> Target:
    """An ONNX file that is whole but for its metadata, loaded without proof."""
    from lockstep.classifier import Classifier
    from lockstep.errors import LockstepError

    path = folder / "model.onnx"
    valid = tiny_model()

    def make(generator: Random) -> bytes:
        start = valid.index(b"classes")  # the graph before it stays whole: a wrong one is ONNX Runtime's to refuse
        return valid[:start] + mutate_bytes(generator, [valid[start:]])

    def use(data: bytes) -> None:
        path.write_bytes(data)
        Classifier(path, verify=False).predict(np.zeros((28, 28), np.uint8))

    return Target([valid], make, use, (LockstepError,))


def certificate(_: Path) -> Target:
    """certificate.json; half of the damaged ones name their own hash, as a forger would."""
    from lockstep.certificate import hash_content, read_certificate, serialize_certificate
    from lockstep.errors import LockstepError

    valid = (PUBLISHED / "certificate.json").read_bytes()
    content = json.loads(valid)

    def make(generator: Random) -> bytes:
        if generator.random() < 0.3:
            return mutate_bytes(generator, [valid], JSON_TOKENS)
        changed = mutate_json(generator, content)
        if generator.random() < 0.5:
            return serialize(generator, changed, indent=2)
        try:
            changed["sha256"] = hash_content(changed)
            return serialize_certificate(changed)
        except (AttributeError, TypeError, ValueError):  # what is no object, or cannot be encoded
            return serialize(generator, changed)

    def use(data: bytes) -> None:
        read = read_certificate(data, "certificate.json")
        assert 0 <= read.quality.accuracy <= 1

    return Target([valid], make, use, (LockstepError,))


def golden(folder: Path) -> Target:
    """golden.json, replayed by the model that it belongs to."""
    from lockstep.classifier import Classifier
    from lockstep.errors import LockstepError
    from lockstep.golden import replay_golden_sample

    path = folder / "model.onnx"
    path.write_bytes(tiny_model())
    classifier = Classifier(path, verify=False)
    images = synthetic_digits(1, 1)[0][:, None]
    outputs = classifier.run(images)
    content = {
        "tolerance": 1e-4, "image_shape": [1, 28, 28],
        "cases": [
            {"image": images[0].tolist(), "logits": outputs.logits[0].tolist(),
             "probabilities": outputs.probabilities[0].tolist(),
             "predicted": classifier.classes[int(outputs.logits[0].argmax())]}
        ],
    }  # fmt: skip
    valid = json.dumps(content).encode()

    def make(generator: Random) -> bytes:
        if generator.random() < 0.3:
            return mutate_bytes(generator, [valid], JSON_TOKENS)
        return serialize(generator, mutate_json(generator, content))

    return Target([valid], make, lambda data: replay_golden_sample(data, classifier), (LockstepError,))


def statements(folder: Path) -> Target:
    """Signed statements of rebuilds (DSSE): half of the damaged ones are signed after they were damaged."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    from lockstep.errors import LockstepError
    from lockstep.rebuilt import BUILDER, PAYLOAD_TYPE, PREDICATE_TYPE, check_rebuilt

    private = ec.generate_private_key(ec.SECP256R1())
    public = folder / "key.pub"
    pem, layout = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(pem, layout))
    signer = CryptoSigner(private)
    files = {"model.onnx": b"model"}
    statement = {
        "_type": "https://in-toto.io/Statement/v1", "predicateType": PREDICATE_TYPE,
        "subject": [{"name": "model.onnx", "digest": {"sha256": hashlib.sha256(b"model").hexdigest()}}],
        "predicate": {"runDetails": {"builder": {"id": BUILDER}}},
    }  # fmt: skip

    def sign(payload: bytes) -> dict[str, Any]:
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(signer)
        return envelope.to_dict()

    signed = sign(json.dumps(statement).encode())
    valid = json.dumps(signed).encode() + b"\n"

    def make(generator: Random) -> bytes:
        match generator.randrange(3):
            case 0:
                return mutate_bytes(generator, [valid], JSON_TOKENS)
            case 1:
                return serialize(generator, mutate_json(generator, signed)) + b"\n"
            case _:
                return json.dumps(sign(serialize(generator, mutate_json(generator, statement)))).encode() + b"\n"

    def use(data: bytes) -> None:
        check_rebuilt(files, data, [public], 1, "model.intoto.jsonl")

    return Target([valid], make, use, (LockstepError,))


class Post(NamedTuple):
    path: str
    content_type: str
    query: bytes
    body: bytes
    json_length: int | None = None  # of a V2 request whose tensor follows its JSON

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"host", b"localhost"), (b"content-type", self.content_type.encode("latin-1"))]
        if self.json_length is not None:
            headers.append((b"inference-header-content-length", b"%d" % self.json_length))
        return headers


def http(folder: Path) -> Target:
    """Requests to the ASGI application: bodies of every kind, content types, and query strings."""
    from lockstep.service.app import Service
    from lockstep.service.settings import ModelFiles, Settings

    model = folder / "model.onnx"
    model.write_bytes(tiny_model())
    app = Service(Settings(ModelFiles(model, None, None), max_bytes=1 << 20, max_pixels=1 << 20, max_images=4))
    loop = asyncio.new_event_loop()
    valid = list(http_requests())

    def make(generator: Random) -> Post:
        path, kind, query, body, json_length = generator.choice(valid)
        types = [other.content_type.encode() for other in valid]
        if generator.random() < 0.3:
            kind = mutate_bytes(generator, [kind.encode()], types).decode("latin-1")
        if generator.random() < 0.2:
            query = mutate_bytes(generator, [query, b"include_input=true&reject=false"])
        if json_length is not None and generator.random() < 0.5:
            json_length = max(0, json_length + generator.choice((-1, 1, 100_000, -json_length)))
        if kind == "application/json" and json_length is None and generator.random() < 0.6:
            body = serialize(generator, mutate_json(generator, json.loads(body)))
        else:
            body = mutate_bytes(generator, [body], HTTP_TOKENS)
        return Post(path, kind, query, body, json_length)

    def use(request: Post) -> None:
        status, answer = loop.run_until_complete(call_app(app, request))
        check_answer(status, answer)

    for request in valid:
        status, answer = loop.run_until_complete(call_app(app, request))
        assert status == 200, answer
    return Target(valid, make, use, ())


def http_bytes(folder: Path) -> Target:
    """Raw bytes at the port of a real service: request lines, headers, chunked bodies."""
    from served import run_service

    model = folder / "model.onnx"
    model.write_bytes(tiny_model())
    stack = ExitStack()
    service = stack.enter_context(run_service(folder, model, "--no-verify", "--max-pixels", str(1 << 20)))
    valid = []
    for request in http_requests():
        target, body = request.path.encode() + b"?" + request.query, request.body
        start = b"POST " + target + b" HTTP/1.1\r\nconnection: close\r\n"
        start += b"".join(name + b": " + value + b"\r\n" for name, value in request.headers())
        valid.append(start + b"content-length: %d\r\n\r\n" % len(body) + body)
        chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        valid.append(start + b"transfer-encoding: chunked\r\n\r\n" + chunks)

    def use(data: bytes) -> None:
        with socket.create_connection(service.address, timeout=8) as connection:
            answer = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    answer += chunk
            except (ConnectionError, BrokenPipeError):
                return
        if answer:
            status = answer.split(b" ", 2)[1:2]
            assert answer.startswith(b"HTTP/1.1 "), answer[:80]
            assert status[0].isdigit() and int(status[0]) in STATUSES, answer[:80]  # noqa: PT018

    def finish() -> str:
        try:
            assert service.predict(valid_png(), "image/png").status == 200
            log = service.log.read_text()
            return f"the service's log: {log[:500]}" if "Traceback" in log else ""
        finally:
            stack.close()

    return Target(valid, lambda generator: mutate_bytes(generator, valid, HTTP_TOKENS), use, (), finish)


async def call_app(app: Any, request: Post) -> tuple[int, bytes]:
    """One request, with the body in two parts."""
    body, middle = request.body, len(request.body) // 2
    messages = [
        {"type": "http.request", "body": body[:middle], "more_body": True},
        {"type": "http.request", "body": body[middle:], "more_body": False},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": request.path, "raw_path": request.path.encode(), "query_string": request.query, "root_path": "",
        "headers": request.headers(), "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check_answer(status: int, answer: bytes) -> None:
    assert status in STATUSES, (status, answer[:200])
    if status == 200 and b'"binary_data_size"' in answer:  # a damaged request may ask for binary outputs
        return
    content = json.loads(answer)
    if status != 200:
        assert set(content) == {"error"}, content
        assert content["error"].isprintable(), content
        assert len(content["error"]) < 1000, content


def http_requests() -> Iterator[Post]:
    """Requests that are answered with 200."""
    png = valid_png()
    yield Post("/predict", "image/png", b"", png)
    yield Post("/predict", "application/octet-stream", b"include_input=true", png)
    part = b'--cut\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + png + b"\r\n"
    yield Post("/predict", "multipart/form-data; boundary=cut", b"", part * 2 + b"--cut--\r\n")
    image = synthetic_digits(1, 3)[0][0]
    yield Post("/predict", "application/json", b"", json.dumps({"images": [image.tolist()]}).encode())
    yield Post("/predict", "application/x-lockstep-pixels", b"", image.tobytes() * 2)
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28]}
    infer, outputs = "/v2/models/lockstep/infer", [{"name": "logits", "parameters": {"binary_data": False}}]
    data = {"inputs": [{**tensor, "data": image.ravel().tolist()}], "outputs": outputs, "id": "1"}
    yield Post(infer, "application/json", b"", json.dumps(data).encode())
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 784}}]}).encode()
    yield Post(infer, "application/octet-stream", b"", header + image.tobytes(), len(header))
