"""The weights file: it describes its network, is the same for the same weights, and invalid files raise an error."""

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
        origin="local",
        preparation="resize",
        params={"seed": 0, "optimizer": "adamw", "learning_rate": 0.005, "shuffle": True},
    )


def rewrite_header(path: Path, **changes: Any) -> None:
    """Write the file again with changes in its header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["lockstep"])
    save_file(tensors, path, {"lockstep": json.dumps({**header, **changes})})


def test_reading_gives_the_network_and_header_that_were_written(
    network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    network(images)  # updates the running statistics
    write_weights(tmp_path / "w", network, header)
    loaded, loaded_header = read_weights(tmp_path / "w")
    assert loaded_header == header
    assert not loaded.training
    assert not loaded.body.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded(images), network.eval()(images))


def test_the_header_is_readable_without_this_project(
    network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", network, header)
    with safe_open(tmp_path / "w", framework="np") as file:
        content = json.loads(file.metadata()["lockstep"])
    assert content["architecture"] == "compact"
    assert content["classes"] == ["Öl", "水"]
    assert content["params"]["optimizer"] == "adamw"
    assert (content["size"], content["channels"], content["origin"]) == (20, 3, "local")


def test_the_same_weights_give_the_same_bytes(network: Classifier, header: WeightsHeader, tmp_path: Path) -> None:
    write_weights(tmp_path / "one", network, header)
    write_weights(tmp_path / "deep" / "two", *read_weights(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "deep" / "two").read_bytes()


def assert_unreadable(path: Path, reason: str) -> None:
    with pytest.raises(StageError, match=reason) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert "dvc repro" in str(error.value)


def test_missing_weights_raise_an_error(tmp_path: Path) -> None:
    assert_unreadable(tmp_path / "w", "missing; run `dvc repro train`")


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_weights_raise_an_error(
    left: int, network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", network, header)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:left])
    assert_unreadable(tmp_path / "w", "not a complete safetensors file")


def test_a_file_in_another_format_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("not safetensors " * 10)
    assert_unreadable(tmp_path / "w", "not a complete safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_another_program_raise_an_error(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w", metadata)
    assert_unreadable(tmp_path / "w", "was not written by the stage train")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "vgg"}, "invalid architecture 'vgg' in its header"),
        ({"size": "large"}, "invalid size 'large' in its header"),
        ({"unknown": "value"}, "invalid unknown 'value' in its header"),
        ({"architecture": "reference_a"}, "its tensors do not match the architecture 'reference_a'"),
        ({"size": 28}, "its tensors do not match the architecture 'compact'"),
        ({"classes": ["a", "b", "c"]}, "its tensors do not match the architecture 'compact'"),
        ({"channels": 1}, "its tensors do not match the architecture 'compact'"),
    ],
)
def test_a_header_that_does_not_match_the_tensors_raises_an_error(
    changes: dict[str, Any], reason: str, network: Classifier, header: WeightsHeader, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", network, header)
    rewrite_header(tmp_path / "w", **changes)
    assert_unreadable(tmp_path / "w", reason)


def test_a_header_that_is_not_json_raises_an_error(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w", {"lockstep": "{"})
    assert_unreadable(tmp_path / "w", "header")


def test_the_parameter_count_excludes_buffers() -> None:
    assert parameter_count(torch.nn.BatchNorm2d(5)) == 10


@pytest.mark.parametrize(("key", "value"), [("size", 28), ("channels", 1), ("classes", ["水", "Öl"])])
def test_weights_that_were_trained_on_other_data_raise_an_error(
    key: str, value: Any, header: WeightsHeader, stage_outputs: Path
) -> None:
    from stages.core.splits import read_splits_info

    known = header.model_dump(include={"size", "channels", "classes"})
    info = read_splits_info(stage_outputs / "splits").model_copy(update=known)
    check_weights_fit(Path("w"), header, info)
    with pytest.raises(StageError, match=f"trained for {key} .*but the splits have"):
        check_weights_fit(Path("w"), header, info.model_copy(update={key: value}))
