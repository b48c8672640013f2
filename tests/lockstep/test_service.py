"""The HTTP service, asked over HTTP: what it answers, what it refuses, and that its own description is true."""

import base64
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from served import Service, form, png, running

Tested = tuple[np.ndarray, np.ndarray]


def large(image: np.ndarray) -> bytes:
    return png(Image.fromarray(image.reshape(28, 28)).resize((84, 84)))


def test_pixels_as_json_are_labelled_as_they_are(service: Service, tested: Tested) -> None:
    images, labels = tested
    reply = service.pixels(*images[:20, 0])
    assert reply.status == 200
    assert [int(one["label"]) for one in reply.json["predictions"]] == labels[:20].tolist()
    assert reply.json["model"] == service.ask("/model").json["sha256"]


def test_a_picture_a_form_and_raw_bytes_give_the_same(service: Service, tested: Tested) -> None:
    picture = large(tested[0][0])
    one = service.predict(picture).json["predictions"][0]
    assert list(one) == ["name", "label", "probability", "probabilities"]
    assert service.predict(picture, "application/octet-stream").json["predictions"] == [one]
    body, kind = form(("a.png", picture), ("b.png", large(tested[0][1])), ("c.png", picture))
    several = service.predict(body, kind).json["predictions"]
    assert [each["name"] for each in several] == ["a.png", "b.png", "c.png"]
    assert several[0] == one | {"name": "a.png"} == several[2] | {"name": "a.png"}


def test_what_the_network_sees_is_shown_when_asked(service: Service, tested: Tested) -> None:
    body = json.dumps({"images": [tested[0][4, 0].tolist()]}).encode()
    seen = service.predict(body, "application/json", "?seen=true").json["predictions"][0]["seen"]
    assert base64.b64decode(seen) == tested[0][4].tobytes()


def test_what_is_known_of_the_model_is_shown(service: Service, made: Path) -> None:
    about = service.ask("/model").json
    assert about["classes"] == list("0123456789")
    assert about["input"] == {"channels": 1, "height": 28, "width": 28}
    assert about["preparation"] == "mnist"
    assert about["metadata"]["weights_sha256"]
    assert about["metrics"] == json.loads((made / "evaluate.json").read_text())
    assert 0 <= about["golden_difference"] < 1e-4
    assert about["certificate"] == json.loads((made / "certificate.json").read_text())
    assert about["refused"] is None


def test_health_readiness_and_numbers_for_prometheus(service: Service, tested: Tested) -> None:
    assert (service.ask("/healthz").status, service.ask("/readyz").status) == (200, 200)
    before, _ = numbers(service), service.pixels(tested[0][0, 0])
    after = numbers(service)
    good = 'lockstep_requests_total{path="/predict",status="200"}'
    assert after[good] == before.get(good, 0) + 1
    assert after["lockstep_images_inside"] == 0
    last = 'lockstep_request_seconds_bucket{le="+Inf",path="/predict"}'
    assert after[last] == after['lockstep_request_seconds_count{path="/predict"}']


def numbers(service: Service) -> dict[str, float]:
    reply = service.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in reply.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


ZEROS = np.zeros((28, 28), int).tolist()


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"no picture", "image/png", 422, "not a readable image"),
        (b"", "image/png", 422, "is empty"),
        (png(np.full((30, 30), 9, np.uint8)), "image/png", 422, "nothing stands out"),
        (png(Image.new("1", (10_000, 10_000))), "image/png", 422, "more than 40,000,000"),
        (b"x", "text/plain", 415, "content type text/plain"),
        (b"a=1", "application/x-www-form-urlencoded", 415, "content type"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"[]", "application/json", 422, 'one key, "images"'),
        (b'{"images": []}', "application/json", 422, "no image"),
        (json.dumps({"images": [ZEROS], "more": 1}).encode(), "application/json", 422, 'one key, "images"'),
        (json.dumps({"images": [ZEROS[1:]]}).encode(), "application/json", 422, "28 x 28"),
        (json.dumps({"images": [[*ZEROS[1:], [0] * 27]]}).encode(), "application/json", 422, "28 x 28"),
        (json.dumps({"images": [[[256] * 28] * 28]}).encode(), "application/json", 422, "0 to 255"),
        (json.dumps({"images": [[[0.5] * 28] * 28]}).encode(), "application/json", 422, "0 to 255"),
        (json.dumps({"images": [[[True] * 28] * 28]}).encode(), "application/json", 422, "not numbers"),
        (json.dumps({"images": [[[float("nan")] * 28] * 28]}).encode(), "application/json", 422, "0 to 255"),
        (json.dumps({"images": [[[-(10**400)] * 28] * 28]}).encode(), "application/json", 422, "0 to 255"),
        (b'{"images": [' + b"{}," * 500_000 + b"{}]}", "application/json", 413, "JSON is larger than 64 images"),
        (form(("a", b"x"), ("b", b"y"))[0][:-12], "multipart/form-data; boundary=cut", 400, "cut off"),
        (json.dumps({"images": [ZEROS] * 65}).encode(), "application/json", 413, "more than 64 images"),
        (b"no form", "multipart/form-data", 400, "not a valid form"),
        (b"no form", "multipart/form-data; boundary=cut", 400, "cut off"),
        (b"no form--cut--", "multipart/form-data; boundary=cut", 400, "not a valid form"),
        (form()[0], "multipart/form-data; boundary=cut", 422, "no image"),
        (form(("a", b"x"), field="other")[0], "multipart/form-data; boundary=cut", 422, "other"),
        (form(*[("a", b"x")] * 66)[0], "multipart/form-data; boundary=cut", 413, "more than 64 images"),
        (bytes(16_000_001), "image/png", 413, "larger than 16,000,000 bytes"),
    ],
)  # fmt: skip
def test_bad_requests_are_answered_with_a_line(
    service: Service, body: bytes, kind: str, status: int, said: str
) -> None:
    reply = service.predict(body, kind)
    assert reply.status == status
    assert said in reply.json["error"]
    assert list(reply.json) == ["error"]


def test_a_bad_picture_among_good_ones_is_named(service: Service, tested: Tested) -> None:
    body, kind = form(("a.png", large(tested[0][0])), ("b.png", b"no picture"))
    assert service.predict(body, kind).json["error"].startswith("image 1 (b.png): not a readable image")
    body, kind = form(("+2AA-", large(tested[0][0])))  # a name that no UTF-8 says
    assert service.predict(body, f"{kind}; charset=utf-7").status == 200


def test_paths_and_methods_that_are_not_there(service: Service) -> None:
    assert service.ask("/other").status == 404
    assert service.ask("/other").json == {"error": "Not Found"}
    assert service.ask("/predict").status == 405
    assert service.ask("/predict").headers["allow"] == "POST"
    assert service.ask("/predict?seen=perhaps", b"x", "image/png").status == 422


def test_its_own_description_is_of_the_model_that_answers(service: Service) -> None:
    described = service.ask("/openapi.json").json
    assert set(described["paths"]) == {"/predict", "/model", "/healthz", "/readyz", "/metrics"}
    post = described["paths"]["/predict"]["post"]
    assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "503"}
    rows = post["requestBody"]["content"]["application/json"]["schema"]["properties"]["images"]["items"]
    assert (rows["minItems"], rows["items"]["maxItems"]) == (28, 28)
    prediction = described["components"]["schemas"]["Prediction"]
    assert prediction["properties"]["label"]["enum"] == list("0123456789")
    model, certificate = (described["components"]["schemas"][name]["properties"] for name in ("Model", "Certificate"))
    about = service.ask("/model").json
    assert set(model) == set(about)
    assert list(certificate) == list(about["certificate"])
    for part in ("dataset", "quality", "parity"):
        assert set(certificate[part]["properties"]) == set(about["certificate"][part])
    example = post["requestBody"]["content"]["application/json"]["example"]
    assert service.predict(json.dumps(example).encode(), "application/json").status == 200


def test_the_page_asks_nothing_of_other_hosts(service: Service) -> None:
    reply = service.ask("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert b"://" not in reply.content


def test_concurrent_requests_each_get_their_own_answer(service: Service, tested: Tested) -> None:
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda image: service.pixels(image[0]), tested[0][:160]))
    assert [int(reply.json["predictions"][0]["label"]) for reply in replies] == tested[1][:160].tolist()


def test_a_full_queue_answers_503_and_goes_on(made: Path, tested: Tested, tmp_path: Path) -> None:
    flags = ("--queue", "4", "--max-images", "4")
    body = png(np.asarray(Image.fromarray(tested[0][0, 0]).resize((3000, 3000))))  # takes a while to decode
    with running(tmp_path, made / "model.onnx", *flags) as service, ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda _: service.predict(body), range(32)))
        assert {reply.status for reply in replies} == {200, 503}
        refused = next(reply for reply in replies if reply.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert "try again" in refused.json["error"]
        assert service.predict(body).status == 200


def test_slow_senders_are_cut_off(made: Path, tmp_path: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\n"
    with running(tmp_path, made / "model.onnx", "--seconds", "1") as service:
        for sent, wanted in ((head + b"x", b"408"), (head[:20], b""), (b"", b"")):
            with socket.create_connection(service.address, timeout=15) as one:
                one.sendall(sent)
                began = time.monotonic()
                assert one.recv(4096).split(b" ", 2)[1:2] == ([wanted] if wanted else [])
                assert time.monotonic() - began < 6


def test_connections_that_are_cut_leave_nothing_behind(made: Path, tested: Tested, tmp_path: Path) -> None:
    """Neither of what all bodies may hold, 1.6 MB, nor of the queue."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 90000\r\n\r\n"
    with running(tmp_path, made / "model.onnx", "--max-bytes", "100000") as service:
        for size in (80_000, 90_000) * 25:
            with socket.create_connection(service.address, timeout=5) as one:
                one.sendall(head + bytes(size))
        time.sleep(0.5)
        assert service.pixels(tested[0][0, 0]).status == 200
        assert numbers(service)["lockstep_images_inside"] == 0


def test_a_request_in_pieces_without_a_length_is_counted_as_it_comes(service: Service) -> None:
    connection = http.client.HTTPConnection(*service.address, timeout=30)

    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(1_000_000)

    try:
        connection.request("POST", "/predict", pieces(), {"content-type": "image/png"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was cut off before it had sent all
    finally:
        connection.close()
    assert service.ask("/healthz").status == 200


def started(*flags: str) -> Any:
    command = [sys.executable, "-m", "lockstep", "serve", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_what_cannot_be_begun_is_said_in_a_line(made: Path, service: Service, copied: Path, tmp_path: Path) -> None:
    taken = str(service.address[1])
    model = ("--model", str(made / "model.onnx"))
    cases = [
        (("--model", "no.onnx"), "no.onnx: there is no such file"),
        ((*model, "--port", taken), f"cannot listen at 127.0.0.1:{taken}"),
        ((*model, "--golden", "no.json"), "no.json: there is no such file"),
        ((*model, "--certificate", "no.json"), "no.json: there is no such file"),
        ((*model, "--golden", str(made / "evaluate.json")), "does not certify"),
        (("--model", "."), "cannot be read"),
        ((*model, "--report", "no.json"), "no.json: there is no such file; the stage evaluate writes it"),
    ]
    copied.with_name("certificate.json").unlink()
    cases.append(
        (("--model", str(copied)), "certificate.json: there is no such file; a proven model has a certificate")
    )
    for flags, said in cases:
        done = started(*flags)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert started(*model, "--port", "99999").returncode == 2
    with running(tmp_path, copied, "--unproven") as one:
        assert one.ask("/model").json["golden_difference"] is None
        assert one.ask("/model").json["certificate"] is None
    certificate, golden = str(made / "certificate.json"), str(made / "golden.json")
    copied.with_name("golden.json").unlink()
    with running(tmp_path, copied, "--certificate", certificate, "--golden", golden) as one:
        assert one.ask("/model").json["certificate"]


def test_it_listens_on_loopback_and_ends_at_once_when_told(made: Path, tmp_path: Path) -> None:
    with running(tmp_path, made / "model.onnx") as service:
        assert service.address[0] == "127.0.0.1"
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert service.process.returncode == 0
    assert service.log.read_text() == ""


def test_the_service_imports_no_torch(made: Path) -> None:
    program = f"""
import json, sys
from pathlib import Path
from lockstep.service.app import create_app
from lockstep.service.settings import ModelFiles, Settings
create_app(Settings(ModelFiles(Path({str(made / "model.onnx")!r}), None, None)))
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout))
    assert {"lockstep", "starlette", "onnxruntime"} <= found
    assert not found & {"torch", "onnx", "stages", "flows", "sklearn", "prefect", "fastapi"}
