"""The service over HTTP: its answers, its errors, and its OpenAPI document."""

import asyncio
import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from served import Service, form_body, png_bytes, run_service

from lockstep.service.app import Service as HttpService
from lockstep.service.settings import ModelFiles, Settings

Tested = tuple[np.ndarray, np.ndarray]


def large_png(image: np.ndarray) -> bytes:
    return png_bytes(Image.fromarray(image.reshape(28, 28)).resize((84, 84)))


def test_pixels_as_json_are_the_networks_input(service: Service, test_set: Tested) -> None:
    images, labels = test_set
    response = service.predict_prepared(*images[:20, 0])
    assert response.status == 200
    assert [int(prediction["label"]) for prediction in response.json["predictions"]] == labels[:20].tolist()
    assert response.json["model"] == service.request("/model").json["sha256"]


def test_an_image_a_form_and_raw_bytes_give_the_same_prediction(service: Service, test_set: Tested) -> None:
    image = large_png(test_set[0][0])
    prediction = service.predict(image).json["predictions"][0]
    assert list(prediction) == ["name", "label", "probability", "probabilities"]
    assert service.predict(image, "application/octet-stream").json["predictions"] == [prediction]
    body, content_type = form_body(("a.png", image), ("b.png", large_png(test_set[0][1])), ("c.png", image))
    predictions = service.predict(body, content_type).json["predictions"]
    assert [row["name"] for row in predictions] == ["a.png", "b.png", "c.png"]
    assert predictions[0] == prediction | {"name": "a.png"} == predictions[2] | {"name": "a.png"}


def test_the_networks_input_is_returned_on_request(service: Service, test_set: Tested) -> None:
    body = json.dumps({"images": [test_set[0][4, 0].tolist()]}).encode()
    seen = service.predict(body, "application/json", "?include_input=true").json["predictions"][0]["input"]
    assert base64.b64decode(seen) == test_set[0][4].tobytes()


def test_the_model_is_described(service: Service, stage_outputs: Path) -> None:
    description = service.request("/model").json
    assert description["classes"] == list("0123456789")
    assert description["input"] == {"channels": 1, "height": 28, "width": 28}
    assert description["preparation"] == "mnist"
    assert description["metadata"]["weights_sha256"]
    assert description["metrics"] == json.loads((stage_outputs / "evaluate.json").read_text())
    assert 0 <= description["golden_max_abs_error"] < 1e-4
    assert description["certificate"] == json.loads((stage_outputs / "certificate.json").read_text())
    assert description["reload_error"] is None


def test_health_readiness_and_metrics(service: Service, test_set: Tested) -> None:
    assert (service.request("/healthz").status, service.request("/readyz").status) == (200, 200)
    before, _ = read_metrics(service), service.predict_prepared(test_set[0][0, 0])
    after = read_metrics(service)
    successes = 'lockstep_requests_total{path="/predict",status="200"}'
    assert after[successes] == before.get(successes, 0) + 1
    assert after["lockstep_images_in_progress"] == 0
    all_requests = 'lockstep_request_duration_seconds_bucket{le="+Inf",path="/predict"}'
    assert after[all_requests] == after['lockstep_request_duration_seconds_count{path="/predict"}']


def read_metrics(service: Service) -> dict[str, float]:
    response = service.request("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in response.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def tiff_bytes(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "TIFF")
    return data.getvalue()


ZEROS = np.zeros((28, 28), int).tolist()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        (b"not an image", "image/png", 422, "not a readable image"),
        (b"", "image/png", 422, "is empty"),
        (png_bytes(np.full((30, 30), 9, np.uint8)), "image/png", 422, "nothing stands out"),
        (png_bytes(Image.new("1", (10_000, 10_000))), "image/png", 422, "more than 50,000,000"),
        (tiff_bytes(np.full((30, 30), np.nan, np.float32)), "image/tiff", 422, "not all within 0..1, black to white"),
        (tiff_bytes(np.full((30, 30), 70_000, np.int32)), "image/tiff", 422, "not all within 0..65535, black to white"),
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
        (form_body(("a", b"x"), ("b", b"y"))[0][:-12], "multipart/form-data; boundary=cut", 400, "cut off"),
        (json.dumps({"images": [ZEROS] * 65}).encode(), "application/json", 413, "more than 64 images"),
        (b"no form", "multipart/form-data", 400, "not a valid form"),
        (b"no form", "multipart/form-data; boundary=cut", 400, "cut off"),
        (b"no form--cut--", "multipart/form-data; boundary=cut", 400, "not a valid form"),
        (form_body()[0], "multipart/form-data; boundary=cut", 422, "no image"),
        (form_body(("a", b"x"), field="other")[0], "multipart/form-data; boundary=cut", 422, "other"),
        (form_body(*[("a", b"x")] * 66)[0], "multipart/form-data; boundary=cut", 413, "more than 64 images"),
        (bytes(16_000_001), "image/png", 413, "larger than 16,000,000 bytes"),
    ],
)  # fmt: skip
def test_bad_requests_get_an_error_of_one_line(
    service: Service, body: bytes, content_type: str, status: int, message: str
) -> None:
    response = service.predict(body, content_type)
    assert response.status == status
    assert message in response.json["error"]
    assert list(response.json) == ["error"]


def test_a_bad_image_among_good_ones_is_named(service: Service, test_set: Tested) -> None:
    body, content_type = form_body(("a.png", large_png(test_set[0][0])), ("b.png", b"not an image"))
    assert service.predict(body, content_type).json["error"].startswith("image 1 (b.png): not a readable image")
    body, content_type = form_body(("+2AA-", large_png(test_set[0][0])))  # a name that UTF-8 cannot encode
    assert service.predict(body, f"{content_type}; charset=utf-7").status == 200


def test_unknown_paths_and_methods(service: Service) -> None:
    assert service.request("/other").status == 404
    assert service.request("/other").json == {"error": "Not Found"}
    assert service.request("/predict").status == 405
    assert service.request("/predict").headers["allow"] == "POST"
    assert service.request("/predict?include_input=perhaps", b"x", "image/png").status == 422


def test_the_openapi_document_describes_the_model_that_answers(service: Service) -> None:
    document = service.request("/openapi.json").json
    assert set(document["paths"]) == {"/predict", "/model", "/healthz", "/readyz", "/metrics"}
    post = document["paths"]["/predict"]["post"]
    assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "503"}
    rows = post["requestBody"]["content"]["application/json"]["schema"]["properties"]["images"]["items"]
    assert (rows["minItems"], rows["items"]["maxItems"]) == (28, 28)
    prediction = document["components"]["schemas"]["Prediction"]
    assert prediction["properties"]["label"]["enum"] == [*"0123456789", None]
    model, certificate = (document["components"]["schemas"][name]["properties"] for name in ("Model", "Certificate"))
    description = service.request("/model").json
    assert set(model) == set(description)
    assert list(certificate) == list(description["certificate"])
    for part in ("dataset", "quality", "parity"):
        assert set(certificate[part]["properties"]) == set(description["certificate"][part])
    example = post["requestBody"]["content"]["application/json"]["example"]
    assert service.predict(json.dumps(example).encode(), "application/json").status == 200


def test_the_page_requests_nothing_from_other_hosts(service: Service) -> None:
    response = service.request("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert b"://" not in response.content


def test_concurrent_requests_each_get_their_own_answer(service: Service, test_set: Tested) -> None:
    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(lambda image: service.predict_prepared(image[0]), test_set[0][:160]))
    assert [int(response.json["predictions"][0]["label"]) for response in responses] == test_set[1][:160].tolist()


def test_only_short_computations_run_in_the_event_loop(stage_outputs: Path, test_set: Tested) -> None:
    service = HttpService(Settings(ModelFiles(stage_outputs / "model.onnx", None, None)))
    classifier, run, threads = service.reloader.classifier, service.run, []

    def run_and_note_thread(*arguments: Any) -> np.ndarray:
        threads.append(threading.current_thread())
        return run(*arguments)

    service.run = run_and_note_thread  # type: ignore[method-assign]
    for measured, seconds in ((None, 0.0), (classifier, 1.0), (classifier, 0.0)):  # unknown, slow, fast
        service.measured, service.seconds_per_image = measured, seconds
        assert asyncio.run(service.compute(classifier, test_set[0][:2])).shape == (2, 10)
    assert [thread is threading.main_thread() for thread in threads] == [False, False, True]
    service.executor.shutdown()


def test_a_full_queue_answers_503_and_later_requests_succeed(
    stage_outputs: Path, test_set: Tested, tmp_path: Path
) -> None:
    flags = ("--max-concurrent-images", "4", "--max-images", "4")
    body = png_bytes(np.asarray(Image.fromarray(test_set[0][0, 0]).resize((3000, 3000))))  # takes long to decode
    with run_service(tmp_path, stage_outputs / "model.onnx", *flags) as service, ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(lambda _: service.predict(body), range(32)))
        assert {response.status for response in responses} == {200, 503}
        refused = next(response for response in responses if response.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert "try again" in refused.json["error"]
        assert service.predict(body).status == 200


def test_slow_clients_are_disconnected(stage_outputs: Path, tmp_path: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\n"
    with run_service(tmp_path, stage_outputs / "model.onnx", "--request-timeout", "1") as service:
        for message, status in ((head + b"x", b"408"), (head[:20], b""), (b"", b"")):
            with socket.create_connection(service.address, timeout=15) as connection:
                connection.sendall(message)
                started = time.monotonic()
                assert connection.recv(4096).split(b" ", 2)[1:2] == ([status] if status else [])
                assert time.monotonic() - started < 6


def test_closed_connections_release_their_capacity(stage_outputs: Path, test_set: Tested, tmp_path: Path) -> None:
    """The capacity for bodies, 1.6 MB here, and for images."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 90000\r\n\r\n"
    with run_service(tmp_path, stage_outputs / "model.onnx", "--max-bytes", "100000") as service:
        for size in (80_000, 90_000) * 25:
            with socket.create_connection(service.address, timeout=5) as connection:
                connection.sendall(head + bytes(size))
        time.sleep(0.5)
        assert service.predict_prepared(test_set[0][0, 0]).status == 200
        assert read_metrics(service)["lockstep_images_in_progress"] == 0


def test_a_chunked_request_is_limited_as_it_arrives(service: Service) -> None:
    connection = http.client.HTTPConnection(*service.address, timeout=30)

    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(1_000_000)

    try:
        connection.request("POST", "/predict", chunks(), {"content-type": "image/png"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the service closed the connection before all was sent
    finally:
        connection.close()
    assert service.request("/healthz").status == 200


def run_serve(*flags: str) -> Any:
    command = [sys.executable, "-m", "lockstep", "serve", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_errors_at_the_start_are_one_line(
    stage_outputs: Path, service: Service, model_copy: Path, tmp_path: Path
) -> None:
    taken = str(service.address[1])
    model = ("--model", str(stage_outputs / "model.onnx"))
    cases = [
        (("--model", "no.onnx"), "no.onnx: there is no such file"),
        ((*model, "--port", taken), f"cannot listen at 127.0.0.1:{taken}"),
        ((*model, "--golden", "no.json"), "no.json: there is no such file"),
        ((*model, "--certificate", "no.json"), "no.json: there is no such file"),
        ((*model, "--golden", str(stage_outputs / "evaluate.json")), "does not certify"),
        (("--model", "."), "cannot be read"),
        ((*model, "--report", "no.json"), "no.json: there is no such file; the stage evaluate writes it"),
    ]
    model_copy.with_name("certificate.json").unlink()
    cases.append(
        (("--model", str(model_copy)), "certificate.json: there is no such file; a proven model has a certificate")
    )
    for flags, message in cases:
        result = run_serve(*flags)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert run_serve(*model, "--port", "99999").returncode == 2
    with run_service(tmp_path, model_copy, "--no-verify") as unproven:
        assert unproven.request("/model").json["golden_max_abs_error"] is None
        assert unproven.request("/model").json["certificate"] is None
    certificate, golden = str(stage_outputs / "certificate.json"), str(stage_outputs / "golden.json")
    model_copy.with_name("golden.json").unlink()
    with run_service(tmp_path, model_copy, "--certificate", certificate, "--golden", golden) as proven:
        assert proven.request("/model").json["certificate"]


def test_it_listens_on_loopback_and_stops_on_ctrl_c(stage_outputs: Path, tmp_path: Path) -> None:
    with run_service(tmp_path, stage_outputs / "model.onnx") as service:
        assert service.address[0] == "127.0.0.1"
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert service.process.returncode == 0
    assert service.log.read_text() == ""


def test_the_service_imports_no_torch(stage_outputs: Path) -> None:
    program = f"""
import json, sys
from pathlib import Path
from lockstep.service.app import create_app
from lockstep.service.settings import ModelFiles, Settings
create_app(Settings(ModelFiles(Path({str(stage_outputs / "model.onnx")!r}), None, None)))
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(json.loads(result.stdout))
    assert {"lockstep", "starlette", "onnxruntime"} <= imported
    assert not imported & {"torch", "onnx", "stages", "flows", "sklearn", "prefect", "fastapi"}


def test_reject_gives_the_label_null(service: Service, test_set: tuple[np.ndarray, np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    body = json.dumps({"images": [noise.tolist(), test_set[0][0, 0].tolist()]}).encode()
    labels = [
        [one["label"] for one in service.predict(body, "application/json", query).json["predictions"]]
        for query in ("?reject=true", "")
    ]
    assert labels[0] == [None, labels[1][1]]
    assert None not in labels[1]
    assert service.request("/predict?reject=maybe", body, "application/json").status == 422
    document = service.request("/openapi.json").json
    assert {one["name"] for one in document["paths"]["/predict"]["post"]["parameters"]} == {"include_input", "reject"}
    assert None in document["components"]["schemas"]["Prediction"]["properties"]["label"]["enum"]
