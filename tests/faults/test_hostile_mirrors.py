"""A mirror that misbehaves, a real HTTP server on loopback: one line says what it did, and the next mirror is asked."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from counts import record

from stages.core.errors import UnavailableError
from stages.sources import mirrors

CONTENT = bytes(range(256)) * 2000
FILE = mirrors.PublishedFile("a.gz", hashlib.md5(CONTENT).hexdigest())
Answer = Callable[[BaseHTTPRequestHandler], None]


def start(handler: BaseHTTPRequestHandler, status: int = 200, **headers: object) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def deliver(handler: BaseHTTPRequestHandler) -> None:
    start(handler, content_length=len(CONTENT))
    handler.wfile.write(CONTENT)


def drip(handler: BaseHTTPRequestHandler) -> None:
    start(handler, content_length=len(CONTENT))
    for byte in CONTENT:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.2)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.2)


def hang(handler: BaseHTTPRequestHandler) -> None:
    start(handler, content_length=len(CONTENT))
    handler.wfile.write(CONTENT[:1000])
    time.sleep(10)


def cut(handler: BaseHTTPRequestHandler) -> None:
    start(handler, content_length=len(CONTENT))
    handler.wfile.write(CONTENT[:1000])


def cut_chunk(handler: BaseHTTPRequestHandler) -> None:
    start(handler, transfer_encoding="chunked")
    handler.wfile.write(b"1000\r\n" + CONTENT[:100])


def send_html(handler: BaseHTTPRequestHandler) -> None:
    start(handler, content_type="text/html")
    handler.wfile.write(b"<!DOCTYPE html><title>Log in</title>")


def send_more(handler: BaseHTTPRequestHandler) -> None:
    start(handler)
    handler.wfile.write(CONTENT + b"x")


def send_without_end(handler: BaseHTTPRequestHandler, **headers: object) -> None:
    start(handler, **headers)
    while True:
        handler.wfile.write(CONTENT)


def claim_too_much(handler: BaseHTTPRequestHandler) -> None:
    send_without_end(handler, content_length=10**15)


def send_no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x16\x03\x01 what is this\r\n\r\n")


def redirect(location: str) -> Answer:
    return lambda handler: start(handler, 302, location=location)


def fail(status: int) -> Answer:
    return lambda handler: start(handler, status)


def claim_length(length: str) -> Answer:
    return lambda handler: start(handler, content_length=length)


MISBEHAVIOURS: dict[str, tuple[Answer, str]] = {
    "drips": (drip, "slower than 20,000 bytes a second"),
    "drips its headers": (drip_headers, "no answer in 1 s"),
    "hangs in the middle": (hang, "timed out"),
    "cuts": (cut, f"1000 of {len(CONTENT)} bytes"),
    "cuts a chunk": (cut_chunk, "IncompleteRead"),
    "answers 404": (fail(404), "HTTP Error 404"),
    "answers 500": (fail(500), "HTTP Error 500"),
    "sends HTML": (send_html, "an HTML page of 36 bytes"),
    "sends a byte too much": (send_more, f"{len(CONTENT) + 1} bytes, not the published file"),
    "sends without end": (send_without_end, "sends more than 2,000,000 bytes"),
    "claims 1 PB and sends": (claim_too_much, "sends more than 2,000,000 bytes"),
    "claims a negative length": (claim_length("-5"), "bytes, not the published file"),
    "claims no number": (claim_length("many"), "many"),
    "redirects in a loop": (redirect("/a.gz"), "infinite loop"),
    "redirects to a file": (redirect("file:///etc/passwd"), "HTTP Error 302"),
    "redirects to nowhere": (redirect("http://127.0.0.1:9/"), "refused"),
    "speaks no HTTP": (send_no_http, "what is this"),
}


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client has gone
                answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of a test that takes a second; and no proxy."""
    monkeypatch.setattr(mirrors, "TIMEOUT", 1.0)
    monkeypatch.setattr(mirrors, "SLOW_SECONDS", 1.0)
    monkeypatch.setattr(mirrors, "MAX_BYTES", 2_000_000)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_mirror_that_misbehaves_is_one_line_and_the_next_one_delivers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, reason = MISBEHAVIOURS[name]
    started = time.monotonic()
    with serve(answer) as bad, serve(deliver) as good:
        mirrors.download_files([FILE], [bad, good], tmp_path)
        assert FILE.is_intact(tmp_path)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"mirror {bad}: a.gz: ")
        assert reason in line
        (tmp_path / FILE.name).unlink()
        with pytest.raises(UnavailableError) as error:
            mirrors.download_files([FILE], [bad], tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir()), "something is left of the file that did not come"
    assert time.monotonic() - started < 10
    record("mirror", target=name, outcomes={"next mirror asked": 1, "one line": 1})


def test_a_slow_mirror_that_keeps_up_delivers(tmp_path: Path) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        start(handler, content_length=len(CONTENT))
        for begin in range(0, len(CONTENT), 64_000):
            handler.wfile.write(CONTENT[begin : begin + 64_000])
            time.sleep(0.25)

    with serve(slowly) as mirror:
        mirrors.download_files([FILE], [mirror], tmp_path)
    assert FILE.is_intact(tmp_path)


def test_a_password_in_the_address_of_a_mirror_is_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_MIRROR", "http://somebody:s3cret@127.0.0.1:9/mnist")
    with pytest.raises(UnavailableError) as error:
        mirrors.download_files([FILE], [], tmp_path)
    shown = str(error.value) + capsys.readouterr().out
    assert "a URL with a user name or password is not supported" in shown
    assert "s3cret" not in shown
    assert "somebody" not in shown
