"""A trained network in, its weights file out, and back: safetensors with a header that describes the network."""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stages.core.errors import StageError
from stages.core.files import atomic_write, file_sha256
from stages.core.splits import SplitsInfo
from stages.network.models import MODELS, Classifier, ModelName, build_model

HEADER_KEY = "lockstep"  # the only key: safetensors writes several keys in no fixed order


class WeightsHeader(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    architecture: ModelName
    width: int = pydantic.Field(ge=1, le=4096)
    size: int = pydantic.Field(ge=1, le=4096)
    channels: int = pydantic.Field(ge=1, le=4)
    classes: list[str]
    dataset: str
    origin: str
    preparation: Literal["mnist", "resize"]
    params: dict[str, Any]  # the section `train` of the params file, without params that do nothing
    depth: int | None = pydantic.Field(
        None, ge=1, le=64
    )  # left out of the file for networks without one, which ignore it

    @staticmethod
    def of(
        architecture: ModelName, width: int, info: SplitsInfo, params: dict[str, Any], depth: int | None = None
    ) -> "WeightsHeader":
        data = info.model_dump(include={"size", "channels", "classes", "dataset", "origin", "preparation"})
        depth = depth if MODELS[architecture].has_depth else None
        return WeightsHeader(architecture=architecture, width=width, params=params, depth=depth, **data)


def parse_header(metadata: dict[str, str] | None) -> WeightsHeader | None:
    """The header, or None for a file that the stage train has not written."""
    try:
        return WeightsHeader.model_validate_json((metadata or {})[HEADER_KEY])
    except (KeyError, pydantic.ValidationError):
        return None


def write_weights(path: Path, network: Classifier, header: WeightsHeader) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as tmp:
        tmp.write_bytes(
            save(tensors, {HEADER_KEY: json.dumps(header.model_dump(exclude_defaults=True), ensure_ascii=False)})
        )


def read_weights(path: Path) -> tuple[Classifier, WeightsHeader]:
    """The network that the header describes, in evaluation mode, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        header = WeightsHeader.model_validate_json(metadata[HEADER_KEY])
        shape = header.size, header.channels, len(header.classes)
        ones = [1.0] * header.channels  # replaced by the mean and std in the file
        network = build_model(header.architecture, header.width, *shape, ones, ones, header.depth or 1)
        network.load_state_dict(tensors)
        return network.eval(), header
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro train`") from None
    except (SafetensorError, OSError) as error:
        reason = f"not a complete safetensors file ({' '.join(str(error).split()):.300})"
    except KeyError:
        reason = "was not written by the stage train"
    except pydantic.ValidationError as error:
        detail = error.errors()[0]
        key, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
        reason = f"invalid {key} {detail['input']!r:.80} in its header: {message}"
    except RuntimeError:
        reason = f"its tensors do not match the architecture {header.architecture!r} of its header"
    raise StageError(f"{path}: {reason}; run `dvc repro -f train`")


def check_weights_fit(path: Path, header: WeightsHeader, info: SplitsInfo) -> None:
    """Raise StageError if the network was trained for images or classes other than those of the splits."""
    for key in ("size", "channels", "classes"):
        trained, actual = getattr(header, key), getattr(info, key)
        if trained != actual:
            raise StageError(
                f"{path}: trained for {key} {trained}, but the splits have {actual}; run `dvc repro train`"
            )


def short_hash(weights: Path) -> str:
    """The start of the hash, with which reports identify the weights."""
    return file_sha256(weights)[:12]


def parameter_count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
