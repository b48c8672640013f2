"""Atomic outputs: whole, or not there at all."""

import hashlib
import json
from pathlib import Path

import pytest

from stages.core.files import atomic_write, file_sha256, remove_path, write_csv, write_json


class StopError(Exception):
    pass


def fail_after(*_: object) -> None:
    raise StopError


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "made/on/the/way/file"
    with atomic_write(path) as tmp:
        tmp.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_the_former_one_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "below").mkdir(parents=True)
    (path / "below/former").touch()
    with atomic_write(path) as tmp:
        tmp.mkdir()
        (tmp / "new").touch()
        assert (path / "below/former").exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("former", [True, False])
def test_a_file_stays_as_it_was_when_the_block_fails(former: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if former:
        path.write_text("former")
    with pytest.raises(StopError), atomic_write(path) as tmp:
        fail_after(tmp.write_text("half"))
    assert [file.read_text() for file in tmp_path.iterdir()] == (["former"] if former else [])


@pytest.mark.parametrize("former", [True, False])
def test_a_folder_stays_as_it_was_when_the_block_fails(former: bool, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    if former:
        path.mkdir()
        (path / "file").write_text("former")
    with pytest.raises(StopError), atomic_write(path) as tmp:
        fail_after(tmp.mkdir(), (tmp / "file").write_text("half"))
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == (["former"] if former else [])
    assert list(tmp_path.iterdir()) == ([path] if former else [])


@pytest.mark.parametrize("name", [".out.partial", ".out.previous.partial"])
@pytest.mark.parametrize("folder", [True, False])
def test_what_a_killed_run_left_is_removed(folder: bool, name: str, tmp_path: Path) -> None:
    left = tmp_path / name
    if folder:
        left.mkdir()
        (left / "old").touch()
    else:
        left.write_text("a long half of a file")
    with atomic_write(tmp_path / "out") as tmp:
        assert not tmp.exists()
        tmp.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "new")]


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_path(tmp_path / "link")
    remove_path(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_json_is_readable_ends_with_a_newline_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"class": "größe", "n": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "class": "größe",\n  "n": 1\n}\n'.encode()


def test_json_that_cannot_be_written_leaves_the_former_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_csv_has_a_header_and_one_line_ending_everywhere(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["class", "n"], [["größe, XL", 1], ["b", 0.5]])
    assert (tmp_path / "a.csv").read_bytes() == 'class,n\n"größe, XL",1\nb,0.5\n'.encode()


def test_csv_whose_rows_fail_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "a.csv", ["n"], ([1 / n] for n in (1, 0)))
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_the_content_and_empty_for_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
    assert file_sha256(tmp_path / "missing") == ""
