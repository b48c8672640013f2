"""A model that others have rebuilt: their signed statements, counted by key."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from served import make_keys, sha256_of

from lockstep import Classifier, LockstepError, ProofFiles
from lockstep.__main__ import main

REBUILT = {"runDetails": {"builder": {"id": "urn:lockstep:rebuild"}}}
NAMES = ("model.onnx", "golden.json", "certificate.json")


def state(model: Path, private: Path, **changes: Any) -> str:
    """A line with a signed statement of the model's files."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": sha256_of(model.with_name(name))}} for name in NAMES],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": REBUILT,
        **changes,
    }
    envelope = Envelope(json.dumps(statement).encode(), "application/vnd.in-toto+json", {})
    envelope.sign(CryptoSigner(load_pem_private_key(private.read_bytes(), None)))
    return json.dumps(envelope.to_dict()) + "\n"


@pytest.fixture
def keys(tmp_path: Path) -> list[tuple[Path, Path]]:
    return [make_keys(tmp_path, name) for name in "ab"]


def verify(model: Path, required: int, *keys: Path) -> int:
    words = [word for key in keys for word in ("--rebuilder-key", str(key))]
    return main(["verify", str(model), "--rebuilt", str(required), *words])


def write(model: Path, *lines: str) -> None:
    model.with_name("model.intoto.jsonl").write_text("".join(lines))


def test_statements_by_different_keys_are_counted(
    model_copy: Path, keys: list[tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    (a, a_public), (b, b_public) = keys
    write(model_copy, state(model_copy, a), state(model_copy, b))
    assert verify(model_copy, 2, a_public, b_public) == 0
    assert "is proven, rebuilt by 2 or more of the keys\n" in capsys.readouterr().out
    assert verify(model_copy, 2, a_public) == 1
    assert "1 of 1 keys have stated that a rebuild gave these bytes, 2 are required" in capsys.readouterr().err
    proof_files = ProofFiles(*map(model_copy.with_name, NAMES[1:]), rebuilt=2, rebuilder_keys=[a_public, b_public])
    assert Classifier(model_copy, verify=proof_files).certificate


def test_one_key_counts_once_whatever_its_file_is_called(
    model_copy: Path, keys: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (a, a_public), _ = keys
    (copy := tmp_path / "copy.pub").write_bytes(a_public.read_bytes())
    write(model_copy, state(model_copy, a), state(model_copy, a, predicate={**REBUILT, "again": True}))
    assert verify(model_copy, 2, a_public, copy) == 1
    assert "1 of 1 keys have stated" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": [{"name": "model.onnx", "digest": {"sha256": "0" * 64}}]},
        {"predicateType": "https://example.org"},
        {"predicate": {}},
    ],
    ids=["other bytes", "another predicate", "provenance of the original build"],
)
def test_a_statement_of_something_else_does_not_count(
    changes: dict[str, Any],
    model_copy: Path,
    keys: list[tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (a, a_public), _ = keys
    write(model_copy, state(model_copy, a, **changes))
    assert verify(model_copy, 1, a_public) == 1
    assert capsys.readouterr().err.endswith("1 are required; 1 of their statements are of other bytes\n")


def test_a_requirement_is_never_dropped_in_silence(
    model_copy: Path, keys: list[tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    key = str(keys[0][1])
    for words in (["--rebuilder-key", key], ["--rebuilt", "1"]):
        assert main(["verify", str(model_copy), *words]) == 2
        assert "need both: how many (--rebuilt), and whose" in capsys.readouterr().err
    image = model_copy.with_name("none.png")
    for command in (["predict", str(image)], ["serve"]):
        assert main([*command, "--model", str(model_copy), "--no-verify", "--key", key]) == 2
        assert capsys.readouterr().err == "--no-verify contradicts --key and --rebuilt\n"


def test_a_changed_statement_and_one_of_a_stranger_do_not_count(
    model_copy: Path, keys: list[tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    (a, a_public), (b, _) = keys
    envelope = json.loads(state(model_copy, a, predicate={**REBUILT, "x": 1}))
    envelope["payload"] = json.loads(state(model_copy, a))["payload"]
    write(model_copy, json.dumps(envelope) + "\n", state(model_copy, b))
    assert verify(model_copy, 1, a_public) == 1
    assert "0 of 1 keys have stated" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["{", "[]", '{"payload": "x"}', "\x00"])
def test_bad_files_are_one_line(
    line: str, model_copy: Path, keys: list[tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    (private, public), _ = keys
    write(model_copy, state(model_copy, private), line + "\n")
    proof_files = ProofFiles(*map(model_copy.with_name, NAMES[1:]), rebuilt=1, rebuilder_keys=[public])
    with pytest.raises(LockstepError, match=r"model\.intoto\.jsonl: line 2 is not a signed statement \("):
        Classifier(model_copy, verify=proof_files)
    for key, message in (
        (private, "not a public key of a kind that is supported"),
        (private.with_name("none"), "cannot be read"),
    ):
        assert verify(model_copy, 1, key) == 1
        assert message in capsys.readouterr().err
    model_copy.with_name("model.intoto.jsonl").unlink()
    assert verify(model_copy, 1, public) == 2
    assert "there is no such file; a rebuilt model has statements" in capsys.readouterr().err
