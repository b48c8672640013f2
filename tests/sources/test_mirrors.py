"""Published files, from the first mirror that delivers them right: here mirrors are folders."""

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


def mirror(folder: Path, content: bytes) -> str:
    folder.mkdir()
    (folder / FILE.name).write_bytes(content)
    return str(folder)


def test_the_first_mirror_that_has_the_published_file_delivers(target: Path, tmp_path: Path) -> None:
    wrong, right = mirror(tmp_path / "wrong", b"another"), mirror(tmp_path / "right", CONTENT)
    mirrors.download_files([FILE], [wrong, right], target)
    assert (target / FILE.name).read_bytes() == CONTENT


def test_only_the_content_makes_a_file_intact(target: Path) -> None:
    assert not FILE.intact(target)
    (target / FILE.name).write_bytes(CONTENT[:-1] + b"x")
    assert not FILE.intact(target)
    (target / FILE.name).write_bytes(CONTENT)
    assert FILE.intact(target)


def test_a_wrong_file_never_takes_the_target_s_place(target: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="7 bytes, not the published file by its checksum"):
        mirrors.download_files([FILE], [mirror(tmp_path / "wrong", b"another")], target)
    assert list(target.iterdir()) == []


def test_no_mirror_at_all_is_unavailable(target: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no mirror delivered a\.gz"):
        mirrors.download_files([FILE], [], target)


@pytest.mark.parametrize(
    ("own", "expected"),
    [("", ["theirs"]), ("  ", ["theirs"]), ("mine", ["mine", "theirs"]), (" mine ", ["mine", "theirs"])],
)
def test_a_persons_own_mirror_heads_the_list(own: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_MIRROR", own)
    assert mirrors.with_own(["theirs"]) == expected


def test_a_persons_folder_may_start_at_home(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror(tmp_path / "mine", CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCKSTEP_MIRROR", "~/mine")
    mirrors.download_files([FILE], [], target)
    assert FILE.intact(target)


def test_a_mirror_may_be_a_file_url(target: Path, tmp_path: Path) -> None:
    mirrors.download_files([FILE], [Path(mirror(tmp_path / "right", CONTENT)).as_uri()], target)
    assert FILE.intact(target)


def test_to_ask_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mirror(tmp_path / "right", CONTENT)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    mirrors.check_available(FILE, [right])
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(UnavailableError):
        mirrors.check_available(FILE, [str(tmp_path / "nowhere")])
