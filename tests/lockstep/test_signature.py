"""A signed model: nobody without the private key can change one of its files unnoticed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from model_signing import hashing, signing
from served import make_keys, run_service
from toys import wait_until

from lockstep import Classifier, LockstepError, ProofFiles
from lockstep.__main__ import main

SIGNED = ("model.onnx", "golden.json", "certificate.json", "CARD.md")


@pytest.fixture
def signed(model_copy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A signed model and the public key."""
    private, public = make_keys(tmp_path, "owner")
    shutil.copyfile(model_copy, model_copy.with_name("weights.safetensors"))  # beside it, and not signed
    config = hashing.Config().set_ignored_paths(paths=[model_copy.with_name("weights.safetensors")])
    signer = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(config)
    signer.sign(model_copy.parent, model_copy.with_name("model.sig"))
    return model_copy, public


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_signed_model_is_loaded_with_the_public_key(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, key = signed
    assert main(["verify", str(model), "--key", str(key)]) == 0
    assert capsys.readouterr().out.startswith(f"{model} is proven, signed by the owner of {key}\n")
    assert Classifier(model, verify=ProofFiles.beside_model(model, key)).certificate


@pytest.mark.parametrize("name", [*SIGNED, "model.sig"])
def test_one_changed_byte_is_found(name: str, signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, key = signed
    flip_byte(model.with_name(name))
    assert main(["verify", str(model), "--key", str(key)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_key_and_a_missing_signature_are_one_line(signed: tuple[Path, Path], tmp_path: Path) -> None:
    model, key = signed
    _, other_key = make_keys(tmp_path, "other")
    with pytest.raises(LockstepError, match=r"its signature does not hold for the key .*other\.pub"):
        Classifier(model, verify=ProofFiles.beside_model(model, other_key))
    with pytest.raises(LockstepError, match=r"its signature does not hold for the key .*none\.pub"):
        Classifier(model, verify=ProofFiles.beside_model(model, tmp_path / "none.pub"))
    model.with_name("model.sig").unlink()
    with pytest.raises(LockstepError, match=r"model\.sig: there is no such file; a signed model has a card"):
        Classifier(model, verify=ProofFiles.beside_model(model, key))


@pytest.mark.parametrize("name", ["CARD.md", "model.sig"])
def test_a_service_that_requires_a_signature_keeps_its_model_when_a_byte_changes(
    name: str, signed: tuple[Path, Path], tmp_path: Path
) -> None:
    model, key = signed
    with run_service(tmp_path, model, "--key", str(key)) as service:
        before = service.request("/model").json
        flip_byte(model.with_name(name))
        wait_until(lambda: service.request("/model").json["reload_error"], 30)
        assert "its signature does not hold" in service.request("/model").json["reload_error"]
        assert service.request("/model").json["sha256"] == before["sha256"]
        assert service.predict_prepared(np.zeros((28, 28), np.uint8)).status == 200
