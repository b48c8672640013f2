"""Published files, from the first mirror that delivers them with the right checksum; here mirrors are folders."""

import hashlib
from pathlib import Path

import pytest

from stages.core.errors import UnavailableError
from stages.sources import mirrors

CONTENT = b"as published"
FILE = mirrors.PublishedFile("a.gz", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def make_mirror(folder: Path, content: bytes) -> str:
    folder.mkdir()
    (folder / FILE.name).write_bytes(content)
    return str(folder)


def test_the_first_mirror_that_has_the_published_file_delivers(target: Path, tmp_path: Path) -> None:
    wrong, right = make_mirror(tmp_path / "wrong", b"another"), make_mirror(tmp_path / "right", CONTENT)
    mirrors.download_files([FILE], [wrong, right], target)
    assert (target / FILE.name).read_bytes() == CONTENT


def test_only_the_content_makes_a_file_intact(target: Path) -> None:
    assert not FILE.is_intact(target)
    (target / FILE.name).write_bytes(CONTENT[:-1] + b"x")
    assert not FILE.is_intact(target)
    (target / FILE.name).write_bytes(CONTENT)
    assert FILE.is_intact(target)


def test_a_wrong_file_never_replaces_the_target(target: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="7 bytes, not the published file by its checksum"):
        mirrors.download_files([FILE], [make_mirror(tmp_path / "wrong", b"another")], target)
    assert list(target.iterdir()) == []


def test_no_mirror_at_all_is_unavailable(target: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no mirror delivered a\.gz"):
        mirrors.download_files([FILE], [], target)


@pytest.mark.parametrize(("value", "is_used"), [("", False), ("  ", False), ("{user}", True), (" {user} ", True)])
def test_the_users_mirror_is_asked_first(
    value: str, is_used: bool, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, published = make_mirror(tmp_path / "user", CONTENT), make_mirror(tmp_path / "published", CONTENT)
    asked: list[str] = []
    download = mirrors.download_file
    monkeypatch.setattr(
        mirrors, "download_file", lambda file, mirror, path: (asked.append(mirror), download(file, mirror, path))
    )
    monkeypatch.setenv("LOCKSTEP_MIRROR", value.format(user=user))
    mirrors.download_files([FILE], [published], target)
    assert asked == [user if is_used else published]


def test_the_users_folder_may_start_with_a_tilde(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mirror(tmp_path / "mine", CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCKSTEP_MIRROR", "~/mine")
    mirrors.download_files([FILE], [], target)
    assert FILE.is_intact(target)


def test_a_mirror_may_be_a_file_url(target: Path, tmp_path: Path) -> None:
    mirrors.download_files([FILE], [Path(make_mirror(tmp_path / "right", CONTENT)).as_uri()], target)
    assert FILE.is_intact(target)


def test_a_check_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = make_mirror(tmp_path / "right", CONTENT)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    mirrors.check_available(FILE, [right])
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(UnavailableError):
        mirrors.check_available(FILE, [str(tmp_path / "nowhere")])
