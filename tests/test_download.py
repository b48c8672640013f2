"""download: the raw files of a data set, as published, whole or not at all."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, WriteParams, idx_bytes, synthetic_digits

from stages.core.errors import UnavailableError
from stages.download import download
from stages.sources import mirrors
from stages.sources.catalog import DATASETS
from stages.sources.published import PUBLISHED, IdxDataset

PAGE = b"<!DOCTYPE html><html>Please log in to this network</html>"


def published() -> dict[str, bytes]:
    """Four small files, with the names and the format of MNIST's."""
    files = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        images, labels = synthetic_digits(count, count)
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
                site.respond(self)

            def log_message(self, *words: Any) -> None:
                """Not on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # closing joins them
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def respond(self, request: BaseHTTPRequestHandler) -> None:
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
        if behaviour == "refusing":
            return "http://127.0.0.1:1/"
        return f"http://127.0.0.1:{self.server.server_port}/{behaviour}/"

    def requested(self, behaviour: str) -> list[str]:
        return [path.split("/")[2] for path in self.requests if path.startswith(f"/{behaviour}/")]

    def dataset(self, *behaviours: str) -> IdxDataset:
        """The data set mnist with this server's files, from mirrors of these behaviours."""
        md5 = tuple(hashlib.md5(content).hexdigest() for content in self.files.values())
        return replace(PUBLISHED["mnist"], mirrors=tuple(map(self.url, behaviours)), md5=md5)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A local server that publishes the data set mnist."""
    site = Site()
    monkeypatch.setitem(DATASETS, "mnist", site.dataset("good"))
    monkeypatch.setattr(mirrors, "TIMEOUT", 0.3)
    yield site
    site.close()


Fetch = Callable[..., Path]


@pytest.fixture
def fetch(params: WriteParams, tmp_path: Path) -> Fetch:
    """Download a data set: fetch("digits")."""

    def run(dataset: str, raw: Path = tmp_path / "raw", check: bool = False) -> Path:
        download(params=params({"download.dataset": dataset}), own=tmp_path / "own", raw=raw, check=check)
        return raw

    return run


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, site: Site) -> Callable[..., None]:
    """Set the mirrors by their behaviour: publish("html", "good")."""

    def change(*behaviours: str) -> None:
        monkeypatch.setitem(DATASETS, "mnist", site.dataset(*behaviours))

    return change


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def read_source(raw: Path) -> dict[str, Any]:
    return dict(json.loads((raw / "source.json").read_text()))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two files in each of two classes: download copies them as they are."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(name.encode())
    return tmp_path / "own"


def test_digits_come_without_a_network(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    raw = fetch("digits")
    assert np.load(raw / "images.npy").shape == (1797, 8, 8)
    assert np.load(raw / "labels.npy").shape == (1797,)


@pytest.mark.parametrize("dataset", ["digits", "mnist", "own"])
def test_source_json_describes_the_files(dataset: str, fetch: Fetch, site: Site, own: Path) -> None:
    raw = fetch(dataset)
    source = read_source(raw)
    assert source["dataset"] == dataset
    assert source["origin"]
    assert source["preparation"] == ("resize" if dataset == "own" else "mnist")
    assert source["classes"] == (["cat", "dog"] if dataset == "own" else list("0123456789"))
    files = {name: data for name, data in read_files(raw).items() if name != "source.json"}
    assert source["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert len(files) == {"digits": 2, "mnist": 4, "own": 4}[dataset]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "own"])
def test_the_same_data_set_gives_the_same_bytes(
    dataset: str, fetch: Fetch, site: Site, own: Path, tmp_path: Path
) -> None:
    first = read_files(fetch(dataset, tmp_path / "one"))
    assert first == read_files(fetch(dataset, tmp_path / "two")) == read_files(fetch(dataset, tmp_path / "one"))


def test_the_folder_depends_on_the_data_set_alone(fetch: Fetch, site: Site, own: Path, tmp_path: Path) -> None:
    expected = {name: read_files(fetch(name, tmp_path / name)) for name in ("digits", "mnist", "own")}
    for name in ("mnist", "digits", "own", "mnist", "own", "digits"):
        assert read_files(fetch(name)) == expected[name]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_files_are_as_the_mirror_publishes_them(fetch: Fetch, site: Site) -> None:
    fetched = read_files(fetch("mnist"))
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
def test_a_mirror_that_fails_is_named_with_the_reason_and_the_next_one_requested(
    behaviour: str,
    reason: str,
    fetch: Fetch,
    site: Site,
    publish: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(behaviour, "good")
    raw = fetch("mnist")
    assert read_files(raw).items() >= site.files.items()
    assert site.requested("good") == list(site.files)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mirror http")]
    assert f"{site.url(behaviour)}: train-images-idx3-ubyte.gz: " in lines[0]
    assert reason in lines[0]
    assert len(lines) == (1 if behaviour in ("silent", "refusing") else 4)


def test_without_a_working_mirror_the_stage_fails_soon_and_says_what_to_do(
    fetch: Fetch, site: Site, publish: Callable[..., None]
) -> None:
    raw = fetch("digits")
    former = read_files(raw)
    behaviours = ("wrong", "html", "cut", "missing", "refusing", "silent")
    publish(*behaviours)
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        fetch("mnist")
    assert time.monotonic() - start < 5
    assert caught.value.status == 69
    for behaviour in behaviours:
        assert site.url(behaviour) in str(caught.value)
    assert "make run DATASET=digits" in str(caught.value)
    assert read_files(raw) == former


def program(site: Site, behaviour: str) -> list[str]:
    """The stage as a command, with one mirror."""
    lines = [
        "from stages.core.command import run_stage",
        "from stages.download import download",
        "from stages.sources.catalog import DATASETS",
        "from stages.sources.published import IdxDataset",
        f"DATASETS['mnist'] = {site.dataset(behaviour)!r}",
        "run_stage(download)",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


def test_the_command_ends_with_69_and_one_line_when_no_mirror_delivers(
    site: Site, params: WriteParams, tmp_path: Path
) -> None:
    flags = ["--params", params(), "--own", tmp_path, "--raw", tmp_path / "raw"]
    command = [*program(site, "refusing"), *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 69
    assert result.stderr.startswith(
        "download: no mirror delivered train-images-idx3-ubyte.gz. Tried: http://127.0.0.1:1"
    )
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists()


def test_the_command_downloads(params: WriteParams, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    flags = ["--params", params({"download.dataset": "digits"}), "--own", tmp_path / "own", "--raw", raw]
    command = [sys.executable, "-m", "stages.download", *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"digits: complete in {raw}\n", "")
    assert read_source(raw)["dataset"] == "digits"


def test_existing_files_are_not_fetched_again(fetch: Fetch, site: Site) -> None:
    raw = fetch("mnist")
    fetch("mnist")
    assert site.requested("good") == list(site.files)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    fetch("mnist")
    assert site.requested("good")[4:] == ["t10k-labels-idx1-ubyte.gz"]
    assert read_files(raw)["t10k-labels-idx1-ubyte.gz"] == site.files["t10k-labels-idx1-ubyte.gz"]


def test_a_failed_fetch_resumes_with_the_missing_files(
    fetch: Fetch, site: Site, publish: Callable[..., None], tmp_path: Path
) -> None:
    publish("half")
    with pytest.raises(UnavailableError, match=r"delivered t10k-images-idx3-ubyte\.gz"):
        fetch("mnist")
    assert not (tmp_path / "raw").exists()
    publish("good")
    fetched = read_files(fetch("mnist"))
    assert site.requested("good") == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert {name: fetched[name] for name in site.files} == site.files


def test_a_failed_fetch_leaves_no_trace_in_another_data_set(
    fetch: Fetch, site: Site, publish: Callable[..., None], tmp_path: Path
) -> None:
    publish("half")
    with pytest.raises(UnavailableError):
        fetch("mnist")
    assert read_files(fetch("digits")) == read_files(fetch("digits", tmp_path / "other"))


def test_a_killed_fetch_leaves_nothing_that_looks_finished(
    fetch: Fetch, site: Site, params: WriteParams, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    flags = ["--params", params(), "--own", tmp_path, "--raw", raw]
    command = [*program(site, "silent-later"), *map(str, flags)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 30
        while len(site.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
    assert site.requested("silent-later") == list(site.files)[:2]
    assert not raw.exists()
    fetch("mnist")
    assert site.requested("good") == list(site.files)[1:]
    assert {name: data for name, data in read_files(raw).items() if name != "source.json"} == site.files


def test_an_interrupted_fetch_leaves_the_former_folder(
    fetch: Fetch, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = fetch("digits")
    former = read_files(raw)
    monkeypatch.setattr(mirrors, "copy_stream", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist")
    assert read_files(raw) == former


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["folder", "URL"])
def test_the_users_mirror_is_asked_first(
    form: str, fetch: Fetch, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, data in site.files.items():
        (folder / name).write_bytes(data)
    monkeypatch.setenv("LOCKSTEP_MIRROR", str(folder) if form == "folder" else site.url("mine").rstrip("/"))
    fetched = read_files(fetch("mnist"))
    assert {name: fetched[name] for name in site.files} == site.files
    assert (site.requested("good"), len(site.requested("mine"))) == ([], 0 if form == "folder" else 4)


def test_a_folder_that_lacks_a_file_is_followed_by_the_mirrors(
    fetch: Fetch, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/train-images-idx3-ubyte.gz").write_bytes(site.files["train-images-idx3-ubyte.gz"])
    monkeypatch.setenv("LOCKSTEP_MIRROR", str(tmp_path / "mirror"))
    fetch("mnist")
    assert site.requested("good") == list(site.files)[1:]
    assert f"mirror {tmp_path / 'mirror'}: train-labels-idx1-ubyte.gz: " in capsys.readouterr().out


@pytest.mark.parametrize("mirror", ["nowhere://files", "http://[", "http://127.0.0.1:1/a b"])
def test_a_mirror_that_is_no_address_is_named(
    mirror: str, fetch: Fetch, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCKSTEP_MIRROR", mirror)
    fetch("mnist")
    assert f"mirror {mirror}: " in capsys.readouterr().out
    assert site.requested("good") == list(site.files)


def test_a_silent_mirror_is_not_asked_for_the_next_file(fetch: Fetch, site: Site, publish: Callable[..., None]) -> None:
    publish("silent", "good")
    fetch("mnist")
    assert len(site.requested("silent")) == 1
    assert len(site.requested("good")) == 4


def test_a_name_that_resolves_too_slowly_counts_as_silent(
    fetch: Fetch, site: Site, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: answer.wait())
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer in 0 s"):
        fetch("mnist")
    answer.set()
    assert time.monotonic() - start < 5


def test_check_passes_where_a_mirror_delivers_and_writes_nothing(fetch: Fetch, site: Site, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    fetch("mnist", check=True)
    assert site.requested("good") == ["t10k-labels-idx1-ubyte.gz"]
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before] == [tmp_path / "params.yaml"]


def test_check_asks_no_mirror_for_files_that_exist(fetch: Fetch, site: Site, publish: Callable[..., None]) -> None:
    fetch("mnist")
    publish("refusing")
    fetch("mnist", check=True)
    assert len(site.requests) == 4


def test_check_fails_where_no_mirror_delivers(fetch: Fetch, site: Site, publish: Callable[..., None]) -> None:
    publish("wrong", "refusing")
    with pytest.raises(UnavailableError, match="make run DATASET=digits"):
        fetch("mnist", check=True)


@pytest.mark.parametrize("dataset", ["digits", "own"])
def test_check_passes_without_mirrors_to_ask(dataset: str, fetch: Fetch, own: Path) -> None:
    assert not fetch(dataset, check=True).exists()


@pytest.mark.parametrize(
    ("name", "torchvision_name"),
    [
        ("mnist", "MNIST"),
        ("fashion-mnist", "FashionMNIST"),
        ("kmnist", "KMNIST"),
    ],
)
def test_the_table_of_published_files_is_torchvisions(name: str, torchvision_name: str) -> None:
    import torchvision

    dataset, original = PUBLISHED[name], getattr(torchvision.datasets, torchvision_name)
    assert [(file.name, file.md5) for file in dataset.files()] == original.resources
    assert list(dataset.mirrors) == original.mirrors
    assert list(dataset.classes) == [label.split(" - ")[0] for label in original.classes]  # "0 - zero" is the digit 0


def test_every_data_set_with_a_mirror_is_compared_with_torchvision() -> None:
    assert set(PUBLISHED) == {name for name, dataset in DATASETS.items() if isinstance(dataset, IdxDataset)}


@pytest.mark.parametrize("flags", [["--help"], []])
def test_the_command_imports_neither_torch_nor_torchvision(
    flags: list[str], params: WriteParams, tmp_path: Path
) -> None:
    if not flags:
        file = params({"download.dataset": "digits"})
        flags = [f"--params={file}", f"--own={tmp_path / 'own'}", f"--raw={tmp_path / 'raw'}"]
    command = [sys.executable, "-X", "importtime", "-m", "stages.download", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imports = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "cyclopts" in imports
    assert not imports & {"torch", "torchvision"}
