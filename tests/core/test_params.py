"""params.yaml: an error in it is one line that names the key."""

from pathlib import Path

import pytest
from conftest import ROOT

from stages.core.errors import StageError
from stages.core.params import SHARED_SECTIONS, Machine, load_params, read_section, stage_names
from stages.preprocess import Preprocess

MACHINE = "machine: {device: cpu, threads: 1}"
PREPROCESS = "preprocess: {size: 28, channels: 1, fit: stretch, validation_fraction: 0.05, test_fraction: 0.2, seed: 0}"


def write_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_a_section_is_read_and_frozen(tmp_path: Path) -> None:
    section = read_section(write_file(tmp_path, f"{MACHINE}\n{PREPROCESS}"), "preprocess", Preprocess)
    assert (section.size, section.validation_fraction) == (28, 0.05)
    with pytest.raises(ValueError, match="frozen"):
        section.size = 14  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{PREPROCESS}\nmashine: {{}}", "unknown section 'mashine' (did you mean 'machine'?)"),
        (f"{PREPROCESS}\nzebra: 1", "unknown section 'zebra' (known: download, evaluate, export_onnx, machine, "),
        (PREPROCESS.replace("size", "sise"), "unknown param preprocess.sise (did you mean 'size'?)"),
        (PREPROCESS.replace("}", ", zebra: 1}"), "unknown param preprocess.zebra (known: size, channels, "),
        (
            PREPROCESS.replace("validation_fraction", "validation").replace("28", "3"),
            "preprocess.validation is now called preprocess.validation_fraction: rename it",
        ),
        (PREPROCESS.replace("28", "'28'"), "preprocess.size: input should be a valid integer, not '28'"),
        (PREPROCESS.replace("28", "true"), "preprocess.size: input should be a valid integer, not True"),
        (PREPROCESS.replace("28", "28.5"), "preprocess.size: input should be a valid integer"),
        (PREPROCESS.replace("28", "3"), "preprocess.size: input should be greater than or equal to 4, not 3"),
        (PREPROCESS.replace("0.05", "1"), "preprocess.validation_fraction: input should be less than 1, not 1"),
        (
            PREPROCESS.replace("0.05", ".nan"),
            "preprocess.validation_fraction: input should be a finite number, not nan",
        ),
        (PREPROCESS.replace("channels: 1", "channels: 2"), "preprocess.channels: input should be 1 or 3, not 2"),
        (PREPROCESS.replace("size: 28, ", ""), "the param preprocess.size is missing"),
        (MACHINE, "the section 'preprocess' is missing"),
        ("preprocess:", "preprocess: input should be a valid dictionary"),
        ("preprocess: [28, 1]", "preprocess: input should be a valid dictionary"),
        ("preprocess: {size: 28", "not valid YAML: "),
        ("preprocess:\n\tsize: 28", "not valid YAML: "),
        (f"{PREPROCESS}\n{PREPROCESS}", "not valid YAML: "),
        ("- 1\n- 2", "must hold sections, each with its keys"),
        ("", "must hold sections, each with its keys"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = write_file(tmp_path, text)
    with pytest.raises(StageError) as caught:
        read_section(path, "preprocess", Preprocess)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_several_wrong_keys_are_all_named(tmp_path: Path) -> None:
    path = write_file(tmp_path, "machine: {device: tpu, threads: 0}")
    with pytest.raises(StageError, match=r"machine\.device: .*; .*machine\.threads: "):
        read_section(path, "machine", Machine)


def test_each_renamed_param_is_named_with_its_new_name_and_nothing_else_is(tmp_path: Path) -> None:
    path = write_file(tmp_path, PREPROCESS.replace("_fraction", ""))
    with pytest.raises(StageError) as caught:
        read_section(path, "preprocess", Preprocess)
    assert str(caught.value) == (
        f"{path}: preprocess.validation is now called preprocess.validation_fraction: rename it; "
        f"{path}: preprocess.test is now called preprocess.test_fraction: rename it"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none\.yaml: there is no such params file"):
        load_params(tmp_path / "none.yaml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("größe: 1".encode("latin-1"))
    with pytest.raises(StageError, match=r"params\.yaml: not valid YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("text", "number"), [("1e-3", 0.001), ("0", 0.0), (".25", 0.25), ("5.0e-2", 0.05)])
def test_numbers_may_be_written_as_people_write_them(text: str, number: float, tmp_path: Path) -> None:
    path = write_file(tmp_path, PREPROCESS.replace("0.05", text))
    assert read_section(path, "preprocess", Preprocess).validation_fraction == number


def test_a_section_is_that_of_a_stage_or_shared() -> None:
    assert set(load_params(ROOT / "params.yaml")) <= {*stage_names(), *SHARED_SECTIONS}
