"""For those who consume model.onnx: a library here, a command, a service and its page beside it. No torch."""

from serve.classifier import Classifier, Prediction
from serve.problem import BadPicture, Problem

__all__ = ["BadPicture", "Classifier", "Prediction", "Problem"]
