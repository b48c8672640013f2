"""Connections that are used in ways a browser does not: pipelined, not read, half closed, gone, or open at the end."""

import io
import re
import signal
import socket
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin
from served import Service, png_bytes, run_service
from toys import wait_until

from lockstep.service.runner import is_small

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


def anonymous_megabytes(service: Service) -> float:
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())
    assert match
    return int(match[1]) / 1000


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /none HTTP/1.1\r\nhost: localhost\r\n\r\n"
        )
        data = b""
        while data.count(b"HTTP/1.1") < 2:
            data += connection.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"404"]


def test_a_flood_of_pipelined_requests_is_refused_and_takes_no_memory(stage_outputs: Path, tmp_path: Path) -> None:
    with run_service(tmp_path, stage_outputs / "model.onnx") as service:
        before = anonymous_megabytes(service)
        for _ in range(20):
            with socket.create_connection(service.address, timeout=30) as connection:
                try:
                    connection.sendall(GET * 10_000)
                except (BrokenPipeError, ConnectionResetError):
                    continue
                assert b"400 Bad Request" in read_all(connection)
        assert service.request("/healthz").status == 200
        assert anonymous_megabytes(service) < before + 50


def test_a_client_that_does_not_read_is_cut_off(stage_outputs: Path, tmp_path: Path) -> None:
    with run_service(tmp_path, stage_outputs / "model.onnx", "--request-timeout", "1") as service:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(service.address)
        with connection:
            connection.setblocking(False)
            with pytest.raises((BlockingIOError, BrokenPipeError, ConnectionResetError)):
                send_endlessly(connection)
            wait_until(lambda: not open_connections(service), 15)


def send_endlessly(connection: socket.socket) -> None:
    while True:
        connection.sendall(GET)
        time.sleep(0.001)


def open_connections(service: Service) -> int:
    return len([one for one in psutil.Process(service.process.pid).net_connections("tcp") if one.raddr])


def test_a_pipelining_client_that_leaves_is_no_traceback(stage_outputs: Path, tmp_path: Path) -> None:
    body = png_bytes(np.zeros((3000, 3000), np.uint8))
    head = (
        f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with run_service(tmp_path, stage_outputs / "model.onnx") as service:
        for _ in range(5):
            with socket.create_connection(service.address, timeout=30) as connection:
                connection.sendall(head.encode() + body + GET)
                time.sleep(0.02)
        time.sleep(1)
        assert service.request("/healthz").status == 200
        assert "Traceback" not in service.log.read_text()


def test_a_client_may_close_its_side_after_the_request(service: Service) -> None:
    for path in ("/healthz", "/model"):
        with socket.create_connection(service.address, timeout=30) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_client_that_waits_before_it_sends_too_much_hears_so_at_once(service: Service) -> None:
    lines = "host: localhost\r\ncontent-type: image/png\r\ncontent-length: 99999999999\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{lines}".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 413")


def test_a_length_may_have_leading_zeros(service: Service) -> None:
    lines = f"host: localhost\r\ncontent-type: image/png\r\nconnection: close\r\ncontent-length: {'0' * 5000}1\r\n\r\nx"
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\n{lines}".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 422")


def test_a_request_that_is_not_over_when_the_service_stops_gets_503(stage_outputs: Path, tmp_path: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\nx"
    with (
        run_service(tmp_path, stage_outputs / "model.onnx", "--request-timeout", "60") as service,
        socket.create_connection(service.address, timeout=30) as connection,
    ):
        connection.sendall(head)
        time.sleep(0.5)
        service.process.send_signal(signal.SIGINT)
        assert read_all(connection).startswith(b"HTTP/1.1 503")
        assert service.process.wait(15) == 0
        assert "Traceback" not in service.log.read_text()


def test_a_small_picture_with_large_texts_is_decoded_in_a_thread() -> None:
    """Decoded between other requests, it would delay them for 0.3 s."""
    texts, files = PngImagePlugin.PngInfo(), [io.BytesIO(), io.BytesIO()]
    for _ in range(60):
        texts.add(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1_000_000), 9))
    image = Image.fromarray(np.eye(28, dtype=np.uint8) * 255)
    image.save(files[0], "PNG")
    image.save(files[1], "PNG", pnginfo=texts)
    assert len(files[1].getvalue()) < 65_536
    assert [is_small(file.getvalue()) for file in files] == [True, False]
