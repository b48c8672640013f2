"""Send good and bad requests to a service for minutes, while its model is replaced: it must not crash, grow, load a
refused model, or answer with a 5xx other than 503.

python -m benchmarks.soak --minutes 10
"""

import hashlib
import http.client
import io
import itertools
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cyclopts import App
from PIL import Image

from lockstep.certificate import hash_content, serialize_certificate

ROOT = Path(__file__).parent.parent
Address = tuple[str, int]
MAX_GROWTH, MAX_GROWTH_MB = 0.1, 5  # of the memory since the second quarter

app = App(name="python -m benchmarks.soak", result_action="return_none")


def png_bytes(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def draw_seven(side: int) -> bytes:
    """A PNG of a seven, dark on light."""
    sheet = np.full((28, 28), 230, np.uint8)
    sheet[6:8, 8:20] = sheet[8:22, 17:20] = 30
    return png_bytes(Image.fromarray(sheet).resize((side, side)))


DIGITS = {side: draw_seven(side) for side in (28, 280, 1500)}
LARGE_PNG = png_bytes(Image.new("1", (10_000, 10_000)))  # 100 megapixels in 12 kB
PIXELS = json.dumps({"images": [np.eye(28, dtype=int).tolist()] * 4}).encode()
FORM_TYPE = "multipart/form-data; boundary=cut"


def form_body(*files: bytes) -> bytes:
    head = b'--cut\r\ncontent-disposition: form-data; name="images"; filename="x.png"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--cut--\r\n"


def post(body: bytes, content_type: str) -> Callable[[Address], int]:
    def send_post(address: Address) -> int:
        return send(address, "POST", "/predict?include_input=true", body, {"content-type": content_type})

    return send_post


def get(path: str) -> Callable[[Address], int]:
    return lambda address: send(address, "GET", path, None, {})


def send(address: Address, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


HEAD = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 50000\r\n\r\n"


def disconnect(address: Address) -> int:
    """Close the connection in the middle of the body, or before the answer has arrived."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(HEAD + bytes(random.choice((0, 100, 49_999, 50_000))))
    return 0


def send_slowly(address: Address) -> int:
    """Take longer than --seconds."""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            for piece in (HEAD[:30], HEAD[30:], b"xx", b"xx", b"xx", b"xx"):
                connection.sendall(piece)
                time.sleep(0.7)
            status = connection.recv(100).split(b" ")[1:2]
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return int(status[0]) if status else 0


def send_garbage(address: Address) -> int:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(random.randbytes(300) + b"\r\n\r\n")
        status = connection.recv(100).split(b" ")[1:2]
    return int(status[0]) if status else 0


# Each kind of request with the statuses that it may get; 0 is a connection that was closed. Any may get 503.
REQUESTS: dict[str, tuple[Callable[[Address], int], set[int]]] = {
    **{f"a digit of {side} x {side}": (post(body, "image/png"), {200}) for side, body in DIGITS.items()},
    "pixels": (post(PIXELS, "application/json"), {200}),
    "a form": (post(form_body(*[DIGITS[28]] * 8), FORM_TYPE), {200}),
    "a form with a bad file": (post(form_body(DIGITS[28], b"not an image"), FORM_TYPE), {422}),
    "half of a form": (post(form_body(DIGITS[28], DIGITS[280])[:-200], FORM_TYPE), {400}),
    "an unsupported content type": (post(b"hello", "text/plain"), {415}),
    "invalid JSON": (post(b"{" * 5000, "application/json"), {400}),
    "JSON of another shape": (post(b'{"images": [[1, 2], [3]]}', "application/json"), {422}),
    "a truncated image": (post(DIGITS[1500][:900], "image/png"), {422}),
    "noise sent as an image": (post(random.Random(0).randbytes(200_000), "image/jpeg"), {422}),
    "100 megapixels": (post(LARGE_PNG, "image/png"), {422}),
    "20 MB": (post(bytes(20_000_000), "image/png"), {413}),
    "too many images": (post(form_body(*[b"x"] * 70), FORM_TYPE), {413}),
    "the page": (get("/"), {200}),
    "the model": (get("/model"), {200}),
    "metrics": (get("/metrics"), {200}),
    "an unknown path": (get("/none"), {404}),
    "an unsupported method": (get("/predict"), {405}),
    "a closed connection": (disconnect, {0}),
    "a slow client": (send_slowly, {0, 408}),
    "garbage": (send_garbage, {0, 400}),
}


@app.default
def soak(
    *,
    minutes: float = 10.0,
    clients: int = 64,
    replace_seconds: float = 5.0,
    model: Path = ROOT / "data" / "model" / "model.onnx",
) -> None:
    """Soak a copy of the model, with golden.json and certificate.json beside it; a file is replaced every so often."""
    with tempfile.TemporaryDirectory() as folder:
        changes = ModelChanges(model, Path(folder))
        served = changes.replace()
        command = [sys.executable, "-m", "lockstep", "serve", "--model", str(served), "--port", "0"]
        with subprocess.Popen(
            [*command, "--request-timeout", "3"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout
                match = re.search(r"http://(.+):(\d+)/", process.stdout.readline())
                if not match:
                    sys.exit("the service did not start: `lockstep serve` says why")
                address = match[1], int(match[2])
                stop = threading.Event()
                replacer = threading.Thread(target=changes.replace_until, args=(stop, replace_seconds), daemon=True)
                replacer.start()
                failures, counts, memory = send_mixed(address, process.pid, minutes * 60, clients)
                stop.set()
                replacer.join()
                failures |= changes.find_errors(address)
                is_running = process.poll() is None
            finally:
                process.terminate()
    early, late = np.median(memory[len(memory) // 4 : len(memory) // 2]), np.median(memory[-len(memory) // 4 :])
    statuses = ", ".join(f"{count:,} of {status or 'none'}" for status, count in sorted(counts.items()))
    print(f"{sum(counts.values()):,} requests in {minutes:g} minutes: {statuses}")
    print(f"{changes.promoted} promoted and {changes.refused} refused models")
    print(f"anonymous memory {early:.0f} MB in the second quarter, {late:.0f} in the last, {max(memory):.0f} at most")
    for line in sorted(failures)[:10]:
        print(line)
    if failures or not is_running or late > early * (1 + MAX_GROWTH) + MAX_GROWTH_MB:
        sys.exit("the service failed: see the lines above")


class ModelChanges:
    """Replaces the files of a served model, in turn by those of two proven models and by ones that must be refused."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder, self.promoted, self.refused, self.served_sha256 = folder, 0, 0, ""
        files = {name: model.with_name(name).read_bytes() for name in ("golden.json", "certificate.json")}
        first = files | {"model.onnx": model.read_bytes()}
        proto = onnx.load_model_from_string(first["model.onnx"])
        onnx.helper.set_model_props(proto, {**{p.key: p.value for p in proto.metadata_props}, "soak": "another"})
        second = certify(files | {"model.onnx": proto.SerializeToString()})
        golden = json.loads(files["golden.json"])
        golden["cases"][0]["logits"][0] += 1
        wrong_golden = certify(first | {"golden.json": json.dumps(golden).encode()})
        changed = files["certificate.json"].replace(b'"format": 1', b'"format":  1')
        self.turns = itertools.cycle(
            [(first, True), (wrong_golden, False), (second, True), (second | {"certificate.json": changed}, False)]
        )

    def replace(self) -> Path:
        """Write the files of the next turn; returns the path of the model."""
        files, is_good = next(self.turns)
        for name, content in files.items():
            tmp = self.folder / f"{name}.partial"
            tmp.write_bytes(content)
            tmp.replace(self.folder / name)
        if is_good:
            self.promoted += 1
            self.served_sha256 = hashlib.sha256(files["model.onnx"]).hexdigest()
        else:
            self.refused += 1
        return self.folder / "model.onnx"

    def replace_until(self, stop: threading.Event, seconds: float) -> None:
        while not stop.wait(seconds):
            self.replace()

    def find_errors(self, address: Address) -> set[str]:
        """Compare what was promoted and refused with what the service says of it, once it has seen the last files."""
        time.sleep(5)
        expected = {"loaded": self.promoted - 1, "refused": self.refused}  # it started with the first
        metrics = fetch(address, "/metrics")
        errors = {
            f"its metrics do not say that it {result} {count} models"
            for result, count in expected.items()
            if f'lockstep_model_reloads_total{{result="{result}"}} {count}.0' not in metrics
        }
        if self.served_sha256 not in fetch(address, "/model"):
            errors.add(f"it does not serve the last promoted model, {self.served_sha256[:12]}")
        return errors


def fetch(address: Address, path: str) -> str:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def certify(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with a certificate that names their hashes, as validate_parity would write it."""
    content: dict[str, Any] = json.loads(files["certificate.json"])
    del content["sha256"]
    for name, file in (("model", "model.onnx"), ("golden", "golden.json")):
        content[f"{name}_sha256"] = hashlib.sha256(files[file]).hexdigest()
    return files | {"certificate.json": serialize_certificate({**content, "sha256": hash_content(content)})}


def send_mixed(
    address: Address, process_id: int, seconds: float, clients: int
) -> tuple[set[str], Counter[int], list[float]]:
    """Failures, the number of answers of each status, and the service's anonymous memory in MB over time."""
    end = time.monotonic() + seconds
    failures: set[str] = set()
    counts: Counter[int] = Counter()
    answered: set[str] = set()  # the kinds of request that got an allowed status
    lock = threading.Lock()

    def client(seed: int) -> None:
        generator = random.Random(seed)
        while time.monotonic() < end:
            name = generator.choice(list(REQUESTS))
            send_request, allowed = REQUESTS[name]
            try:
                status = send_request(address)
            except OSError as error:
                with lock:
                    failures.add(f"{name}: {error!r}")
                time.sleep(0.1)
                continue
            with lock:
                counts[status] += 1
                if status in allowed:
                    answered.add(name)
                elif status != 503:
                    failures.add(f"{name}: answered with {status}")

    threads = [threading.Thread(target=client, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < end:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
        memory.append(sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon")))
        time.sleep(0.5)
    for thread in threads:
        thread.join(90)
    failures |= {f"{name}: never got an allowed status" for name in REQUESTS.keys() - answered}
    failures |= {"a request hangs" for thread in threads if thread.is_alive()}
    if counts[503] > 0.05 * sum(counts.values()):
        failures.add(f"{counts[503]} answers of 503")
    return failures, counts, memory


if __name__ == "__main__":
    app()
