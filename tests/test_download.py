"""download: the raw files of a data set, as published, whole or not at all."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from conftest import ROOT, Params, drawn_digits, idx_bytes

from stages.core.errors import UnavailableError
from stages.download import download
from stages.sources import mirrors

PAGE = b"<!DOCTYPE html><html>Please log in to this network</html>"


def published() -> dict[str, bytes]:
    """Four small files, named and formed as MNIST's."""
    files = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        images, labels = drawn_digits(count, count)
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx_bytes(images)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx_bytes(labels)
    return files


class Site:
    """A web server whose first folder says how it misbehaves: /good/NAME, /html/NAME."""

    def __init__(self) -> None:
        self.files, self.requests, self.closing = published(), [], threading.Event()  # type: ignore[var-annotated]
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *words: Any) -> None:
                """Not on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # closing joins them
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        _, behaviour, name = request.path.split("/")
        body = self.files[name]
        if behaviour == "silent" or (behaviour == "silent-later" and name != next(iter(self.files))):
            self.closing.wait()
            return
        if behaviour == "missing" or (behaviour == "half" and name.startswith("t10k")):
            request.send_error(404)
            return
        sent = {"wrong": b"x" * len(body), "html": PAGE, "cut": body[:-5]}.get(behaviour, body)
        request.send_response(200)
        request.send_header("Content-Length", str(len(body if behaviour == "cut" else sent)))
        request.end_headers()
        request.wfile.write(sent)

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{behaviour}/"

    def asked(self, behaviour: str) -> list[str]:
        return [path.split("/")[2] for path in self.requests if path.startswith(f"/{behaviour}/")]

    def resources(self) -> list[tuple[str, str]]:
        return [(name, hashlib.md5(content).hexdigest()) for name, content in self.files.items()]

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """torchvision's MNIST, published by a server here."""
    site = Site()
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", site.resources())
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [site.url("good")])
    monkeypatch.setattr(mirrors, "TIMEOUT", 0.3)
    yield site
    site.close()


Get = Callable[..., Path]


@pytest.fixture
def get(params: Params, tmp_path: Path) -> Get:
    """Download a data set: get("digits")."""

    def run(dataset: str, raw: Path = tmp_path / "raw", check: bool = False) -> Path:
        download(params=params({"download.dataset": dataset}), own=tmp_path / "own", raw=raw, check=check)
        return raw

    return run


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, site: Site) -> Callable[..., None]:
    """Set the mirrors by their behaviour: publish("html", "good")."""

    def change(*behaviours: str) -> None:
        urls = ["http://127.0.0.1:1/" if name == "refusing" else site.url(name) for name in behaviours]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", urls)

    return change


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def source(raw: Path) -> dict[str, Any]:
    return dict(json.loads((raw / "source.json").read_text()))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two files in each of two classes: download copies them as they are."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(name.encode())
    return tmp_path / "own"


def test_digits_come_without_a_network(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    raw = get("digits")
    assert np.load(raw / "images.npy").shape == (1797, 8, 8)
    assert np.load(raw / "labels.npy").shape == (1797,)


@pytest.mark.parametrize("dataset", ["digits", "mnist", "own"])
def test_source_json_says_what_the_files_are(dataset: str, get: Get, site: Site, own: Path) -> None:
    raw = get(dataset)
    said = source(raw)
    assert said["dataset"] == dataset
    assert said["origin"]
    assert said["preparation"] == ("resize" if dataset == "own" else "mnist")
    assert said["classes"] == (["cat", "dog"] if dataset == "own" else list("0123456789"))
    files = {name: data for name, data in content(raw).items() if name != "source.json"}
    assert said["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert len(files) == {"digits": 2, "mnist": 4, "own": 4}[dataset]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "own"])
def test_the_same_data_set_gives_the_same_bytes(dataset: str, get: Get, site: Site, own: Path, tmp_path: Path) -> None:
    first = content(get(dataset, tmp_path / "one"))
    assert first == content(get(dataset, tmp_path / "two")) == content(get(dataset, tmp_path / "one"))


def test_the_folder_depends_on_the_data_set_alone(get: Get, site: Site, own: Path, tmp_path: Path) -> None:
    fresh = {name: content(get(name, tmp_path / name)) for name in ("digits", "mnist", "own")}
    for name in ("mnist", "digits", "own", "mnist", "own", "digits"):
        assert content(get(name)) == fresh[name]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_files_are_those_that_the_mirror_publishes(get: Get, site: Site) -> None:
    fetched = content(get("mnist"))
    del fetched["source.json"]
    assert fetched == site.files


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("wrong", "not the published file by its checksum"),
        ("html", f"an HTML page of {len(PAGE)} bytes"),
        ("cut", " of "),
        ("missing", "HTTP Error 404"),
        ("refusing", "Connection refused"),
        ("silent", "timed out"),
    ],
)
def test_a_mirror_that_fails_is_named_with_the_reason_and_the_next_one_asked(
    behaviour: str, reason: str, get: Get, site: Site, publish: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    publish(behaviour, "good")
    raw = get("mnist")
    assert content(raw).items() >= site.files.items()
    assert site.asked("good") == list(site.files)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mirror http")]
    assert f"{torchvision.datasets.MNIST.mirrors[0]}: train-images-idx3-ubyte.gz: " in lines[0]
    assert reason in lines[0]
    assert len(lines) == (1 if behaviour in ("silent", "refusing") else 4)


def test_without_a_mirror_the_stage_ends_soon_and_says_what_to_do(
    get: Get, site: Site, publish: Callable[..., None]
) -> None:
    raw = get("digits")
    former = content(raw)
    publish("wrong", "html", "cut", "missing", "refusing", "silent")
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        get("mnist")
    assert time.monotonic() - start < 5
    assert caught.value.status == 69
    for mirror in torchvision.datasets.MNIST.mirrors:
        assert mirror in str(caught.value)
    assert "make run DATASET=digits" in str(caught.value)
    assert content(raw) == former


def program(site: Site, mirror: str) -> list[str]:
    """The stage as a command, with one mirror; torch, which takes seconds to import, is left out."""
    lines = [
        "from types import SimpleNamespace",
        "from stages.core.command import run_stage",
        "from stages.sources.published import IdxDataset",
        "from stages.download import download",
        f"mnist = SimpleNamespace(resources={site.resources()}, mirrors=[{mirror!r}], classes=[])",
        "IdxDataset.torchvision = lambda self: mnist",
        "run_stage(download)",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


def test_the_command_ends_with_69_and_one_line_when_no_mirror_delivers(
    site: Site, params: Params, tmp_path: Path
) -> None:
    flags = ["--params", params(), "--own", tmp_path, "--raw", tmp_path / "raw"]
    command = [*program(site, "http://127.0.0.1:1/"), *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 69
    assert done.stderr.startswith("download: no mirror delivered train-images-idx3-ubyte.gz. Tried: http://127.0.0.1:1")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists()


def test_the_command_downloads(params: Params, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    flags = ["--params", params({"download.dataset": "digits"}), "--own", tmp_path / "own", "--raw", raw]
    command = [sys.executable, "-m", "stages.download", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"digits: complete in {raw}\n", "")
    assert source(raw)["dataset"] == "digits"


def test_files_that_are_there_are_not_fetched_again(get: Get, site: Site) -> None:
    raw = get("mnist")
    get("mnist")
    assert site.asked("good") == list(site.files)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    get("mnist")
    assert site.asked("good")[4:] == ["t10k-labels-idx1-ubyte.gz"]
    assert content(raw)["t10k-labels-idx1-ubyte.gz"] == site.files["t10k-labels-idx1-ubyte.gz"]


def test_a_fetch_that_failed_goes_on_where_it_stopped(
    get: Get, site: Site, publish: Callable[..., None], tmp_path: Path
) -> None:
    publish("half")
    with pytest.raises(UnavailableError, match=r"delivered t10k-images-idx3-ubyte\.gz"):
        get("mnist")
    assert not (tmp_path / "raw").exists()
    publish("good")
    fetched = content(get("mnist"))
    assert site.asked("good") == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert {name: fetched[name] for name in site.files} == site.files


def test_a_failed_fetch_leaves_no_trace_in_another_data_set(
    get: Get, site: Site, publish: Callable[..., None], tmp_path: Path
) -> None:
    publish("half")
    with pytest.raises(UnavailableError):
        get("mnist")
    assert content(get("digits")) == content(get("digits", tmp_path / "fresh"))


def test_a_killed_fetch_leaves_nothing_that_looks_finished(
    get: Get, site: Site, params: Params, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    flags = ["--params", params(), "--own", tmp_path, "--raw", raw]
    command = [*program(site, site.url("silent-later")), *map(str, flags)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 30
        while len(site.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
    assert site.asked("silent-later") == list(site.files)[:2]
    assert not raw.exists()
    get("mnist")
    assert site.asked("good") == list(site.files)[1:]
    assert {name: data for name, data in content(raw).items() if name != "source.json"} == site.files


def test_an_interrupted_fetch_leaves_the_former_folder(get: Get, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = get("digits")
    former = content(raw)
    monkeypatch.setattr(mirrors, "copy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get("mnist")
    assert content(raw) == former


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["folder", "URL"])
def test_a_persons_own_mirror_goes_first(
    form: str, get: Get, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, data in site.files.items():
        (folder / name).write_bytes(data)
    monkeypatch.setenv("LOCKSTEP_MIRROR", str(folder) if form == "folder" else site.url("mine").rstrip("/"))
    fetched = content(get("mnist"))
    assert {name: fetched[name] for name in site.files} == site.files
    assert (site.asked("good"), len(site.asked("mine"))) == ([], 0 if form == "folder" else 4)


def test_a_folder_that_lacks_a_file_is_followed_by_the_mirrors(
    get: Get, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/train-images-idx3-ubyte.gz").write_bytes(site.files["train-images-idx3-ubyte.gz"])
    monkeypatch.setenv("LOCKSTEP_MIRROR", str(tmp_path / "mirror"))
    get("mnist")
    assert site.asked("good") == list(site.files)[1:]
    assert f"mirror {tmp_path / 'mirror'}: train-labels-idx1-ubyte.gz: " in capsys.readouterr().out


@pytest.mark.parametrize("mirror", ["nowhere://files", "http://[", "http://127.0.0.1:1/a b"])
def test_a_mirror_that_is_no_address_is_named(
    mirror: str, get: Get, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCKSTEP_MIRROR", mirror)
    get("mnist")
    assert f"mirror {mirror}: " in capsys.readouterr().out
    assert site.asked("good") == list(site.files)


def test_a_silent_mirror_is_not_asked_for_the_next_file(get: Get, site: Site, publish: Callable[..., None]) -> None:
    publish("silent", "good")
    get("mnist")
    assert len(site.asked("silent")) == 1
    assert len(site.asked("good")) == 4


def test_a_name_that_resolves_too_slowly_counts_as_silent(
    get: Get, site: Site, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: ended.wait())
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer in 0 s"):
        get("mnist")
    ended.set()
    assert time.monotonic() - start < 5


def test_check_passes_where_a_mirror_delivers_and_writes_nothing(get: Get, site: Site, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    get("mnist", check=True)
    assert site.asked("good") == ["t10k-labels-idx1-ubyte.gz"]
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before] == [tmp_path / "params.yaml"]


def test_check_asks_no_mirror_for_what_is_here(get: Get, site: Site, publish: Callable[..., None]) -> None:
    get("mnist")
    publish("refusing")
    get("mnist", check=True)
    assert len(site.requests) == 4


def test_check_fails_where_no_mirror_delivers(get: Get, site: Site, publish: Callable[..., None]) -> None:
    publish("wrong", "refusing")
    with pytest.raises(UnavailableError, match="make run DATASET=digits"):
        get("mnist", check=True)


@pytest.mark.parametrize("dataset", ["digits", "own"])
def test_check_always_passes_without_mirrors_to_ask(dataset: str, get: Get, tmp_path: Path) -> None:
    assert not get(dataset, check=True).exists()
