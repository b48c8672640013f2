"""`lockstep verify`: what it prints of a proven model, and that one changed byte is found."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from conftest import ROOT
from served import certify, sha256_of

from lockstep.__main__ import main
from lockstep.certificate import read_certificate
from lockstep.errors import LockstepError


def run_verify(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """The exit status, standard output and standard error."""
    capsys.readouterr()
    status = main(["verify", *map(str, words)])
    return status, *capsys.readouterr()


def test_it_prints_what_was_proven(stage_outputs: Path) -> None:
    command = [sys.executable, "-m", "lockstep", "verify", str(stage_outputs / "model.onnx")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[1:])
    assert result.stdout.splitlines()[0] == f"{stage_outputs / 'model.onnx'} is proven"
    assert list(lines) == ["model", "weights", "golden", "certificate", "accuracy", "macro_f1", "parity", "replay"]
    for name, file in (("model", "model.onnx"), ("weights", "weights.safetensors"), ("golden", "golden.json")):
        assert lines[name] == sha256_of(stage_outputs / file)
    quality = json.loads((stage_outputs / "evaluate.json").read_text())
    assert f"{quality['accuracy']:.4f} (95 % interval {quality['accuracy_low']:.4f} to" in lines["accuracy"]
    assert "200 test images of mnist, required: 0.97" in lines["accuracy"]
    assert "within 0.0001 in 16 configurations" in lines["parity"]
    assert f"ONNX Runtime {onnxruntime.__version__}" in lines["replay"]


def test_json_output(stage_outputs: Path, model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run_verify(capsys, stage_outputs / "model.onnx", "--json")
    content = json.loads(out)
    assert (status, err, content["proven"]) == (0, "", True)
    assert content["certificate"] == json.loads((stage_outputs / "certificate.json").read_text())
    assert content["replay"]["images"] == 10
    assert 0 <= content["replay"]["max_abs_error"] < content["replay"]["tolerance"] == 0.0001
    model_copy.write_bytes(model_copy.read_bytes()[:-1])
    status, out, err = run_verify(capsys, model_copy, "--json")
    assert (status, json.loads(out)) == (1, {"proven": False, "reason": err.strip()})


def test_the_hash_of_a_certificate_covers_all_other_keys(stage_outputs: Path) -> None:
    content = json.loads((stage_outputs / "certificate.json").read_text())
    assert list(content)[-1] == "sha256"
    expected = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(canonical.encode()).hexdigest() == expected


def flip_bits(path: Path, step: int) -> Iterator[tuple[int, bytes]]:
    """The file's bytes with one changed: the first, the last, and some between them."""
    data = path.read_bytes()
    for offset in sorted({*range(0, len(data), step), len(data) - 1}):
        for bits in (0x01, 0x20):
            yield offset, data[:offset] + bytes([data[offset] ^ bits]) + data[offset + 1 :]


@pytest.mark.parametrize(("name", "step"), [("model.onnx", 997), ("golden.json", 997), ("certificate.json", 37)])
def test_one_changed_byte_is_found(name: str, step: int, model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verify(capsys, model_copy)[0] == 0
    path = model_copy.with_name(name)
    for offset, changed in list(flip_bits(path, step)):
        path.write_bytes(changed)
        status, out, err = run_verify(capsys, model_copy)
        assert (status, out) == (1, ""), f"byte {offset} of {name}"
        assert len(err.splitlines()) == 1, err
        assert "certificate.json: " in err


def test_every_changed_bit_of_a_certificate_is_found(stage_outputs: Path) -> None:
    data = (stage_outputs / "certificate.json").read_bytes()
    read_certificate(data, "x")
    for offset, byte in enumerate(data):
        for bit in range(8):
            with pytest.raises(LockstepError, match=r"^x: "):
                read_certificate(data[:offset] + bytes([byte ^ 1 << bit]) + data[offset + 1 :], "x")


@pytest.mark.parametrize("name", ["golden.json", "certificate.json"])
def test_changed_white_space_is_found(name: str, model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model_copy.with_name(name)
    data = path.read_bytes()
    for changed in (data.replace(b"\n ", b"\n\t", 1), data.replace(b'": ', b'":\n', 1), data[:-1], data + b"\n"):
        assert json.loads(changed) == json.loads(data)
        path.write_bytes(changed)
        status, _, err = run_verify(capsys, model_copy)
        assert status == 1
        assert "was changed after it was written" in err or "does not certify" in err


def test_a_model_of_another_run_is_found_by_its_metadata(model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = model_copy.read_bytes()
    for key in ("weights_sha256", "dataset"):
        proto = onnx.load_model_from_string(data)
        next(entry for entry in proto.metadata_props if entry.key == key).value = "other"
        model_copy.write_bytes(proto.SerializeToString())
        certify(model_copy)
        status, _, err = run_verify(capsys, model_copy)
        assert status == 1
        assert f"its metadata {key} is 'other', its certificate has " in err


@pytest.mark.parametrize("name", ["model.onnx", "golden.json", "certificate.json"])
def test_a_missing_file_has_an_exit_status_of_its_own(
    name: str, model_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model_copy.with_name(name)
    path.unlink()
    status, out, err = run_verify(capsys, model_copy)
    assert (status, out) == (2, "")
    assert err.startswith(f"{path}: there is no such file; ")
    path.mkdir()
    status, _, err = run_verify(capsys, model_copy)
    assert (status, err) == (2, f"{path}: cannot be read: Is a directory\n")
    assert run_verify(capsys, ".")[0] == 2


def test_golden_sample_and_certificate_may_be_in_other_places(
    model_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {
        flag: model_copy.with_name(f"{flag}.json").rename(tmp_path / f"other {flag}")
        for flag in ("golden", "certificate")
    }
    assert run_verify(capsys, model_copy)[0] == 2
    assert (
        run_verify(capsys, model_copy, *(word for flag, path in paths.items() for word in (f"--{flag}", path)))[0] == 0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2; this version knows 1"),
        ({"format": True}, "format True"),
        ({"weights_sha256": "ab"}, "its weights_sha256 is 'ab', not 64 hexadecimal digits"),
        ({"weights_sha256": "A" * 64}, "not 64 hexadecimal digits"),
        ({"weights_sha256": 1}, "its weights_sha256 is 1, not of type str"),
        ({"dataset__origin": None}, "it lacks 'origin'"),
        ({"dataset": "mnist"}, "its dataset is not an object"),
        ({"quality": None}, "it lacks 'quality'"),
        ({"quality__images": 1.5}, "its images is 1.5, not of type int"),
        ({"quality__accuracy": "1"}, "its accuracy is '1', not of type float"),
        ({"quality__accuracy": float("nan")}, "its accuracy is nan"),
        ({"quality__accuracy": True}, "its accuracy is True, not of type float"),
        ({"quality__accuracy": 0.5}, "accuracy 0.5 is below the required 0.97"),
        ({"parity__atol": float("inf")}, "its atol is inf"),
        ({"parity__configurations": -1}, "its configurations is -1"),
        ({"environment": []}, "its environment is not an object"),
    ],
)
def test_an_invalid_certificate_is_refused_even_if_its_hash_is_right(
    changes: dict[str, Any], message: str, model_copy: Path
) -> None:
    certify(model_copy, **changes)
    with pytest.raises(LockstepError, match=r"^x: ") as error:
        read_certificate(model_copy.with_name("certificate.json").read_bytes(), "x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_certificate_may_have_further_keys(model_copy: Path) -> None:
    certify(model_copy, quality__loss=0.1, note="ä")
    content = read_certificate(model_copy.with_name("certificate.json").read_bytes(), "x").content
    assert (content["note"], content["quality"]["loss"]) == ("ä", 0.1)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b'{"format": 1', b"[" * 100_000, b'"\\ud800"', b"1" * 5000]
)
def test_bytes_that_are_not_a_certificate(data: bytes) -> None:
    with pytest.raises(LockstepError, match="x: not a certificate ") as error:
        read_certificate(data, "x")
    assert "\n" not in str(error.value)


def test_a_model_is_not_loaded_before_its_hash_is_checked(
    model_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_copy.write_bytes(model_copy.read_bytes() + b"\0")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("the model was loaded"))
    assert run_verify(capsys, model_copy)[0] == 1
