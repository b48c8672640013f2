"""The service over HTTP: its answers, its errors, and its OpenAPI document."""

import asyncio
import base64
import contextlib
import gzip
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

from lockstep.__main__ import main
from lockstep.classifier import Outputs
from lockstep.service.metrics import Metrics
from lockstep.service.request_body import RAW_PIXELS
from lockstep.service.runner import ModelRunner
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


def test_raw_pixels_are_the_networks_inputs_one_after_the_other(service: Service, test_set: Tested) -> None:
    images = test_set[0][:3]
    answer = service.predict(images.tobytes(), RAW_PIXELS, "?include_input=true").json
    assert [base64.b64decode(one.pop("input")) for one in answer["predictions"]] == [x.tobytes() for x in images]
    assert answer == service.predict_prepared(*images[:, 0]).json


def test_numbers_in_json_may_be_written_as_floats(service: Service, test_set: Tested) -> None:
    image = test_set[0][0, 0]
    assert service.predict_prepared(image.astype(float)).json == service.predict_prepared(image).json


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
        (b"x", "text/plain", 415, "content type 'text/plain'"),
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
        (json.dumps({"images": [[["1"] * 28] * 28]}).encode(), "application/json", 422, "not numbers"),
        (json.dumps({"images": [ZEROS]}).encode("utf-16"), "application/json", 400, "not JSON"),
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
        (b"", RAW_PIXELS, 422, "no image"),
        (bytes(783), RAW_PIXELS, 422, "783 bytes are not a multiple of 784, the pixels of an image: 1 x 28 x 28"),
        (bytes(784 * 65), RAW_PIXELS, 413, "more than 64 images"),
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
    assert service.request("/model", b"x", method="POST").headers["allow"] == "GET, HEAD"
    assert service.request("/predict?include_input=perhaps", b"x", "image/png").status == 422
    unknown = service.request("/predict?include=true", b"x", "image/png")
    assert (unknown.status, "there is no query parameter 'include'" in unknown.json["error"]) == (422, True)
    page, head = service.request("/"), service.request("/", method="HEAD")
    assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(len(page.content)))


def test_the_openapi_document_describes_the_model_that_answers(service: Service) -> None:
    document = service.request("/openapi.json").json
    assert set(document["paths"]) == {"/predict", "/model", "/healthz", "/readyz", "/metrics"}
    post = document["paths"]["/predict"]["post"]
    assert set(post["responses"]) == {"200", "400", "403", "408", "413", "415", "422", "503"}
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


EVIL = "evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": EVIL}, 403),  # DNS rebinding: a page of evil.example, which now resolves to 127.0.0.1
        ({"host": f"{EVIL}:8000"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:1"}, 200),  # a forwarded port
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"origin": f"https://{EVIL}"}, 403),
        ({"origin": "null"}, 403),  # a sandboxed frame
    ],
)
def test_requests_of_other_sites_are_refused_on_loopback(
    service: Service, test_set: Tested, headers: dict[str, str], status: int
) -> None:
    for method, path in (("POST", "/predict"), ("POST", "/v2/models/lockstep/infer"), ("GET", "/model")):
        if "origin" in headers and method == "GET":
            continue
        response = service.request(path, test_set[0][0].tobytes(), RAW_PIXELS, method, headers)
        assert (response.status == 403) == (status == 403)
        if status == 403:
            assert ("--allow-host" in response.json["error"]) == (headers.get("origin") != "null")
            assert "\n" not in response.json["error"]
    assert service.request("/model", headers={"origin": f"http://{EVIL}"}).status == 200  # no page can read it
    assert service.request("/readyz", headers={"host": "10.0.0.7:8000"}).status == 200  # a probe


def test_a_compressed_body_is_refused(service: Service, test_set: Tested) -> None:
    response = service.request(
        "/predict", gzip.compress(test_set[0][0].tobytes()), RAW_PIXELS, headers={"content-encoding": "gzip"}
    )
    assert (response.status, response.json["error"]) == (415, "content encoding 'gzip': send the body as it is")


def test_hosts_can_be_allowed(stage_outputs: Path, test_set: Tested, tmp_path: Path) -> None:
    flags = ("--allow-host", "Digits.example", "--allow-host", "other.example", "--host", "0.0.0.0")
    with run_service(tmp_path, stage_outputs / "model.onnx", *flags) as service:
        for host, origin, status in (
            ("digits.example:80", "https://digits.example:80", 200),
            ("127.0.0.1", "https://other.example", 200),  # a proxy that does not pass the Host on
            (EVIL, f"http://{EVIL}", 403),
            ("digits.example", f"http://{EVIL}", 403),
        ):
            headers = {"host": host, "origin": origin}
            assert service.request("/predict", test_set[0][0].tobytes(), RAW_PIXELS, headers=headers).status == status


def test_on_a_network_it_says_so_and_answers_for_every_host(
    stage_outputs: Path, test_set: Tested, tmp_path: Path
) -> None:
    with run_service(tmp_path, stage_outputs / "model.onnx", "--host", "0.0.0.0") as service:
        for headers, status in (({"host": EVIL}, 200), ({"host": EVIL, "origin": "http://other.example"}, 403)):
            response = service.request("/predict", test_set[0][0].tobytes(), RAW_PIXELS, headers=headers)
            assert response.status == status
    (line,) = service.log.read_text().splitlines()
    assert line == "0.0.0.0 is open to the network, without authentication: put a proxy in front of it"


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
    runner = ModelRunner(Settings(ModelFiles(stage_outputs / "model.onnx", None, None)), Metrics())
    classifier, run, threads = runner.reloader.classifier, runner.run, []

    def run_and_note_thread(*arguments: Any) -> Outputs:
        threads.append(threading.current_thread())
        return run(*arguments)

    runner.run = run_and_note_thread  # type: ignore[method-assign]
    for measured, seconds in ((None, 0.0), (classifier, 1.0), (classifier, 0.0)):  # unknown, slow, fast
        runner.measured, runner.seconds_per_image = measured, seconds
        _, outputs = asyncio.run(runner.predict(classifier, test_set[0][:2]))
        assert outputs.probabilities.shape == (2, 10)
    assert [thread is threading.main_thread() for thread in threads] == [False, False, True]
    runner.close()


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
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\n"
    with run_service(tmp_path, stage_outputs / "model.onnx", "--request-timeout", "1") as service:
        for message, status in ((head + b"x", b"408"), (head[:20], b""), (b"", b"")):
            with socket.create_connection(service.address, timeout=15) as connection:
                connection.sendall(message)
                started = time.monotonic()
                assert connection.recv(4096).split(b" ", 2)[1:2] == ([status] if status else [])
                assert time.monotonic() - started < 6


def test_headers_that_never_end_are_cut_off(stage_outputs: Path, tmp_path: Path) -> None:
    """Of the first and of a later request of a connection, and after a body, where trailers may come."""
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
    first = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for start in (head, head + b"x: ", first + head, head + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"):
        with (
            run_service(tmp_path, stage_outputs / "model.onnx", "--request-timeout", "60") as service,
            socket.create_connection(service.address, timeout=15) as connection,
        ):
            connection.sendall(start)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(200):
                    connection.sendall(b"x" * 10_000 if start.endswith(b"x: ") else b"a: b\r\n" * 1000)
                    time.sleep(0.002)
                pytest.fail("the service has read 2 MB of headers")


def test_closed_connections_release_their_capacity(stage_outputs: Path, test_set: Tested, tmp_path: Path) -> None:
    """The capacity for bodies, 1.6 MB here, and for images."""
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 90000\r\n\r\n"
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
    with run_service(tmp_path, model_copy, "--no-verify") as unproven:
        assert unproven.request("/model").json["golden_max_abs_error"] is None
        assert unproven.request("/model").json["certificate"] is None
    certificate, golden = str(stage_outputs / "certificate.json"), str(stage_outputs / "golden.json")
    model_copy.with_name("golden.json").unlink()
    with run_service(tmp_path, model_copy, "--certificate", certificate, "--golden", golden) as proven:
        assert proven.request("/model").json["certificate"]


NUMBERS = ("--workers", "--threads", "--max-concurrent-images", "--max-connections", "--max-bytes", "--max-pixels",
           "--max-images", "--request-timeout", "--rebuilt")  # fmt: skip


@pytest.mark.parametrize("flag", [*NUMBERS, "--port", "--host", "--allow-host"])
def test_a_setting_that_is_out_of_range_is_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in {
        "--port": ("-1", "65536", "nan", "1.5", ""),
        "--host": ("", " "),
        "--allow-host": ("", "null", "digits.example:8443", "[::1]:80", "https://x/"),
    }.get(flag, ("-1", "0", "nan", "inf", "-inf", "1e400", "x", "")):
        with pytest.raises(SystemExit) as ended:
            main(["serve", f"{flag}={value}"])
        output = capsys.readouterr()
        assert (ended.value.code, output.out, len(output.err.splitlines())) == (2, "", 1)
        assert output.err.startswith(f"lockstep serve: argument {flag}: ")


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
from lockstep.service.app import Service
from lockstep.service.settings import ModelFiles, Settings
Service(Settings(ModelFiles(Path({str(stage_outputs / "model.onnx")!r}), None, None)))
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
