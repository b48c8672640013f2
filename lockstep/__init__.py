"""Classify images with a model.onnx of the pipeline: a library, the command `lockstep` and an HTTP service."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from lockstep.errors import ImageError, LockstepError

if TYPE_CHECKING:
    from lockstep.classifier import Classifier, Prediction
    from lockstep.proof import ProofFiles

__all__ = ["Classifier", "ImageError", "LockstepError", "Prediction", "ProofFiles", "__version__"]
# Imported when they are used: the pipeline takes its preparation of images from here, and needs no onnxruntime for it.
LAZY = {"Classifier": "classifier", "Prediction": "classifier", "ProofFiles": "proof"}

try:
    __version__ = version("lockstep-onnx")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(f"lockstep.{LAZY[name]}"), name)
    if name in LAZY.values():
        return import_module(f"lockstep.{name}")
    raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
