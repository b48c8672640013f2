"""Good and bad requests mixed, for minutes, at a service of its own: no crash, no 5xx but 503, no growth in memory.

python -m benchmarks.soak --minutes 10
"""

import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image

ROOT = Path(__file__).parent.parent
Address = tuple[str, int]
GROWTH = 0.1  # of the memory after the first quarter: more than that is growth

app = App(name="python -m benchmarks.soak", result_action="return_none")


def png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def digit(side: int) -> bytes:
    """A seven, dark on light."""
    sheet = np.full((28, 28), 230, np.uint8)
    sheet[6:8, 8:20] = sheet[8:22, 17:20] = 30
    return png(Image.fromarray(sheet).resize((side, side)))


GOOD = {side: digit(side) for side in (28, 280, 1500)}
BOMB = png(Image.new("1", (10_000, 10_000)))  # a hundred megapixels in 12 kB
PIXELS = json.dumps({"images": [np.eye(28, dtype=int).tolist()] * 4}).encode()
CUT = "multipart/form-data; boundary=cut"


def form(*files: bytes) -> bytes:
    head = b'--cut\r\ncontent-disposition: form-data; name="images"; filename="x.png"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--cut--\r\n"


def post(body: bytes, kind: str) -> Callable[[Address], int]:
    def ask(address: Address) -> int:
        return send(address, "POST", "/predict?seen=true", body, {"content-type": kind})

    return ask


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


HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 50000\r\n\r\n"


def cut(address: Address) -> int:
    """A connection that ends in the middle of a body, or with the answer under way."""
    with socket.create_connection(address, timeout=30) as one:
        one.sendall(HEAD + bytes(random.choice((0, 100, 49_999, 50_000))))
    return 0


def slow(address: Address) -> int:
    """A sender that has time: the service has not."""
    with socket.create_connection(address, timeout=60) as one:
        try:
            for piece in (HEAD[:30], HEAD[30:], b"xx", b"xx", b"xx", b"xx"):
                one.sendall(piece)
                time.sleep(0.7)
            status = one.recv(100).split(b" ")[1:2]
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return int(status[0]) if status else 0


def garbage(address: Address) -> int:
    with socket.create_connection(address, timeout=30) as one:
        one.sendall(random.randbytes(300) + b"\r\n\r\n")
        status = one.recv(100).split(b" ")[1:2]
    return int(status[0]) if status else 0


# What is sent, and what may come back: 0 is a connection that ended. 503 may come to all of them.
REQUESTS: dict[str, tuple[Callable[[Address], int], set[int]]] = {
    **{f"a digit of {side} x {side}": (post(body, "image/png"), {200}) for side, body in GOOD.items()},
    "pixels": (post(PIXELS, "application/json"), {200}),
    "a form": (post(form(*[GOOD[28]] * 8), CUT), {200}),
    "a form with a bad file": (post(form(GOOD[28], b"no picture"), CUT), {422}),
    "half a form": (post(form(GOOD[28], GOOD[280])[:-200], CUT), {400}),
    "a wrong type": (post(b"hello", "text/plain"), {415}),
    "no JSON": (post(b"{" * 5000, "application/json"), {400}),
    "JSON of another shape": (post(b'{"images": [[1, 2], [3]]}', "application/json"), {422}),
    "a broken picture": (post(GOOD[1500][:900], "image/png"), {422}),
    "noise that says it is a picture": (post(random.Random(0).randbytes(200_000), "image/jpeg"), {422}),
    "a hundred megapixels": (post(BOMB, "image/png"), {422}),
    "twenty megabytes": (post(bytes(20_000_000), "image/png"), {413}),
    "too many images": (post(form(*[b"x"] * 70), CUT), {413}),
    "the page": (get("/"), {200}),
    "the model": (get("/model"), {200}),
    "numbers": (get("/metrics"), {200}),
    "another path": (get("/none"), {404}),
    "a wrong method": (get("/predict"), {405}),
    "a cut connection": (cut, {0}),
    "a slow sender": (slow, {0, 408}),
    "garbage": (garbage, {0, 400}),
}


@app.default
def soak(*, minutes: float = 10.0, clients: int = 12, model: Path = ROOT / "data" / "model" / "model.onnx") -> None:
    command = [sys.executable, "-m", "lockstep", "serve", "--model", str(model), "--port", "0", "--seconds", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            found = re.search(r"http://(.+):(\d+)/", process.stdout.readline())
            if not found:
                sys.exit("the service does not start")  # and has said why
            wrong, counted, memory = mixed((found[1], int(found[2])), process.pid, minutes * 60, clients)
            alive = process.poll() is None
        finally:
            process.terminate()
    early, late = np.median(memory[len(memory) // 4 : len(memory) // 2]), np.median(memory[-len(memory) // 4 :])
    statuses = ", ".join(f"{count:,} of {status or 'none'}" for status, count in sorted(counted.items()))
    print(f"{sum(counted.values()):,} requests in {minutes:g} minutes: {statuses}")
    print(f"anonymous memory {early:.0f} MB in the second quarter, {late:.0f} in the last, {max(memory):.0f} at most")
    for line in sorted(wrong)[:10]:
        print(line)
    if wrong or not alive or late > early * (1 + GROWTH) + 5:
        sys.exit("not as it should be")


def mixed(address: Address, process: int, seconds: float, clients: int) -> tuple[set[str], Counter[int], list[float]]:
    """What was wrong, how often each status came, and the memory in MB, over time."""
    until = time.monotonic() + seconds
    wrong: set[str] = set()
    counted: Counter[int] = Counter()
    good: set[str] = set()  # what has been answered as it should, and not for want of time
    lock = threading.Lock()

    def client(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < until:
            name = chance.choice(list(REQUESTS))
            ask, allowed = REQUESTS[name]
            try:
                status = ask(address)
            except OSError as error:
                with lock:
                    wrong.add(f"{name}: {error!r}")
                time.sleep(0.1)
                continue
            with lock:
                counted[status] += 1
                if status in allowed:
                    good.add(name)
                elif status != 503:
                    wrong.add(f"{name}: answered with {status}")

    threads = [threading.Thread(target=client, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < until:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        memory.append(sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon")))
        time.sleep(0.5)
    for thread in threads:
        thread.join(90)
    wrong |= {f"{name}: never answered as it should be" for name in REQUESTS.keys() - good}
    wrong |= {"a request hangs" for thread in threads if thread.is_alive()}
    if counted[503] > 0.05 * sum(counted.values()):
        wrong.add(f"{counted[503]} of 503")
    return wrong, counted, memory


if __name__ == "__main__":
    app()
