"""The file of trained weights: safetensors, with a header that says all that is needed to use them."""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stages.core.errors import StageError
from stages.core.files import atomic_write
from stages.core.files import file_sha256 as file_sha256  # re-exported
from stages.core.splits import SplitsInfo
from stages.network.models import Classifier, ModelName, build_model

HEADER_KEY = "lockstep"  # the one key of the header: safetensors writes several in no fixed order


class WeightsHeader(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    architecture: ModelName
    width: int
    size: int
    channels: int
    classes: list[str]
    dataset: str
    origin: str
    preparation: Literal["mnist", "resize"]
    params: dict[str, Any]  # train's section, for the record

    @staticmethod
    def of(architecture: ModelName, width: int, about: SplitsInfo, params: dict[str, Any]) -> "WeightsHeader":
        known = about.model_dump(include={"size", "channels", "classes", "dataset", "origin", "preparation"})
        return WeightsHeader(architecture=architecture, width=width, params=params, **known)


def write_weights(path: Path, network: Classifier, header: WeightsHeader) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as beside:
        beside.write_bytes(save(tensors, {HEADER_KEY: json.dumps(header.model_dump(), ensure_ascii=False)}))


def read_weights(path: Path) -> tuple[Classifier, WeightsHeader]:
    """The network in evaluation mode, on the CPU, built as the header says."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        header = WeightsHeader.model_validate_json(metadata[HEADER_KEY])
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro train`") from None
    except (SafetensorError, OSError) as error:
        raise StageError(f"{path}: not a whole safetensors file ({error}); run `dvc repro -f train`") from None
    except KeyError:
        raise StageError(f"{path}: has no header of ours; run `dvc repro -f train`") from None
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise StageError(
            f"{path}: its header's {where} {wrong['input']!r} is not known: {wrong['msg']}; run `dvc repro -f train`"
        ) from None
    ones = [1.0] * header.channels  # mean and std come with the weights
    network = build_model(
        header.architecture, header.width, header.size, header.channels, len(header.classes), ones, ones
    )
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise StageError(
            f"{path}: its tensors are not those of {header.architecture!r}, the architecture that its header names; "
            "run `dvc repro -f train`"
        ) from None
    return network.eval(), header


def check_weights_fit(path: Path, header: WeightsHeader, about: SplitsInfo) -> None:
    """The weights must be of a network for just this data."""
    for key in ("size", "channels", "classes"):
        ours, theirs = getattr(header, key), getattr(about, key)
        if ours != theirs:
            raise StageError(f"{path}: trained for {key} {ours}, but the splits have {theirs}; run `dvc repro train`")


def short_hash(weights: Path) -> str:
    """By which a report names its weights."""
    return file_sha256(weights)[:12]


def parameter_count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
