"""Reads the metadata_props of an ONNX file of the pipeline: its classes, its input and its image preparation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.errors import LockstepError
from lockstep.fitting import FITS

PREPARATIONS = ("mnist", "resize")


@dataclass(frozen=True)
class ModelMetadata:
    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    preparation: str
    dataset: str
    properties: dict[str, str]  # all metadata_props of the file
    fit: str = "stretch"  # how the preparation `resize` brings an image to size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input: channels, height, width."""
        return self.channels, self.height, self.width


def read_metadata(properties: Mapping[str, str], name: str) -> ModelMetadata:
    try:
        classes = json.loads(properties["classes"])
        _, channels, height, width = json.loads(properties["input"])["shape"]
        preparation, dataset = properties["preparation"], properties.get("dataset", "unknown")
        fit = properties.get("fit", "stretch")  # files of 0.2.0 and before have none
        if preparation not in PREPARATIONS:
            raise ValueError(f"preparation {preparation!r:.40}; this version knows {' and '.join(PREPARATIONS)}")
        if fit not in FITS:
            raise ValueError(f"fit {fit!r:.40}; this version knows {', '.join(FITS)}")
        if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
            raise ValueError(f"classes {classes!r:.80}")
        if len(set(classes)) < len(classes):
            raise ValueError("a class occurs twice")
        "".join(classes).encode()  # UnicodeEncodeError, a ValueError: half of a surrogate pair
        if channels not in (1, 3) or not all(type(side) is int and side > 0 for side in (channels, height, width)):
            raise ValueError(f"a shape of {channels!r:.20}, {height!r:.20}, {width!r:.20}")
    except KeyError as error:
        raise LockstepError(f"{name}: its metadata lack {error}; use a file that export_onnx wrote") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise LockstepError(f"{name}: its metadata are not valid: {error!s:.200}") from None
    return ModelMetadata(tuple(classes), channels, height, width, preparation, dataset, dict(properties), fit)
