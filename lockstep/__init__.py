"""Classify images with a model.onnx of the pipeline: a library, the command `lockstep` and an HTTP service."""

from importlib.metadata import PackageNotFoundError, version

from lockstep.classifier import Classifier, Prediction
from lockstep.errors import ImageError, LockstepError
from lockstep.proof import ProofFiles

__all__ = ["Classifier", "ImageError", "LockstepError", "Prediction", "ProofFiles", "__version__"]

try:
    __version__ = version("lockstep-onnx")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"
