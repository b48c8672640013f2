"""What an ONNX file of the pipeline says of itself: its classes, its input, how a picture is prepared for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.errors import LockstepError

PREPARATIONS = ("mnist", "resize")


@dataclass(frozen=True)
class ModelMetadata:
    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    preparation: str
    dataset: str
    metadata: dict[str, str]  # all of it, as it stands in the file

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, as the network takes it."""
        return self.channels, self.height, self.width


def read_metadata(metadata: Mapping[str, str], name: str) -> ModelMetadata:
    try:
        classes = json.loads(metadata["classes"])
        _, channels, height, width = json.loads(metadata["input"])["shape"]
        preparation = metadata["preparation"]
        if preparation not in PREPARATIONS:
            raise ValueError(f"preparation {preparation!r}, where {' or '.join(PREPARATIONS)} is known here")
        if not classes or not all(isinstance(label, str) for label in classes):
            raise ValueError(f"classes {classes!r}")
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels")
        return ModelMetadata(
            tuple(classes), channels, height, width, preparation, metadata.get("dataset", "unknown"), dict(metadata)
        )
    except KeyError as error:
        raise LockstepError(f"{name}: its metadata lack {error}; is it a file that export_onnx wrote?") from None
    except (TypeError, ValueError) as error:
        raise LockstepError(f"{name}: its metadata are not understood: {error}") from None
