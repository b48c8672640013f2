"""The file of weights: all that is needed to use them, the same bytes for the same weights, refused when not ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.core.errors import StageError
from stages.network.models import Classifier, build_model
from stages.network.weights import WeightsHeader, check_weights_fit, parameter_count, read_weights, write_weights


@pytest.fixture
def network() -> Classifier:
    torch.manual_seed(0)
    return build_model("compact", 8, 20, 3, 2, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.fixture
def header() -> WeightsHeader:
    return WeightsHeader(
        architecture="compact",
        width=8,
        size=20,
        channels=3,
        classes=["Öl", "水"],
        dataset="own",
        origin="here",
        preparation="resize",
        params={"seed": 0, "optimizer": "adamw", "learning_rate": 0.005, "shuffle": True},
    )


def rewritten(path: Path, **changes: Any) -> None:
    """The file again, with changes in its header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(file.metadata()["lockstep"])
    save_file(tensors, path, {"lockstep": json.dumps({**content, **changes})})


def test_weights_and_header_come_back_as_they_were_and_ready_to_use(
    network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    network(images)  # moves the running statistics
    write_weights(tmp_path / "w", network, header)
    found, its_header = read_weights(tmp_path / "w")
    assert its_header == header
    assert not found.training
    assert not found.body.training
    assert found.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert torch.equal(found(images), network.eval()(images))


def test_anyone_can_read_the_header(network: Classifier, header: WeightsHeader, tmp_path: Path) -> None:
    write_weights(tmp_path / "w", network, header)
    with safe_open(tmp_path / "w", framework="np") as file:
        content = json.loads(file.metadata()["lockstep"])
    assert content["architecture"] == "compact"
    assert content["classes"] == ["Öl", "水"]
    assert content["params"]["optimizer"] == "adamw"
    assert (content["size"], content["channels"], content["origin"]) == (20, 3, "here")


def test_the_same_weights_give_the_same_bytes(network: Classifier, header: WeightsHeader, tmp_path: Path) -> None:
    write_weights(tmp_path / "one", network, header)
    write_weights(tmp_path / "deep" / "two", *read_weights(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "deep" / "two").read_bytes()


def refused(path: Path, reason: str) -> None:
    with pytest.raises(StageError, match=reason) as problem:
        read_weights(path)
    assert "\n" not in str(problem.value)
    assert str(path) in str(problem.value)
    assert "dvc repro" in str(problem.value)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "w", "missing; run `dvc repro train`")


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_weights_are_refused(left: int, network: Classifier, header: WeightsHeader, tmp_path: Path) -> None:
    write_weights(tmp_path / "w", network, header)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:left])
    refused(tmp_path / "w", "not a whole safetensors file")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("these are my weights, honestly" * 10)
    refused(tmp_path / "w", "not a whole safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w", metadata)
    refused(tmp_path / "w", "has no header of ours")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "resnet"}, "its header's architecture 'resnet' is not known"),
        ({"size": "large"}, "its header's size 'large'"),
        ({"mood": "good"}, "its header's mood 'good'"),
        ({"architecture": "reference_a"}, "its tensors are not those of 'reference_a'"),
        ({"size": 28}, "its tensors are not those of 'compact'"),
        ({"classes": ["a", "b", "c"]}, "its tensors are not those of 'compact'"),
        ({"channels": 1}, "its tensors are not those of 'compact'"),
    ],
)
def test_a_header_that_does_not_go_with_the_tensors_is_refused(
    changes: dict[str, Any], reason: str, network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", network, header)
    rewritten(tmp_path / "w", **changes)
    refused(tmp_path / "w", reason)


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w", {"lockstep": "{"})
    refused(tmp_path / "w", "header")


def test_parameters_are_counted_without_the_buffers() -> None:
    assert parameter_count(torch.nn.BatchNorm2d(5)) == 10


@pytest.mark.parametrize(("name", "value"), [("size", 28), ("channels", 1), ("classes", ["水", "Öl"])])
def test_weights_for_other_data_do_not_fit(name: str, value: Any, header: WeightsHeader, made: Path) -> None:
    from stages.core.splits import read_splits_info

    known = header.model_dump(include={"size", "channels", "classes"})
    about = read_splits_info(made / "splits").model_copy(update=known)
    check_weights_fit(Path("w"), header, about)
    with pytest.raises(StageError, match=f"trained for {name} .*but the splits have"):
        check_weights_fit(Path("w"), header, about.model_copy(update={name: value}))
