"""For those who consume model.onnx: a library here, commands, a service and its page beside it. No torch."""

from serve.classifier import Classifier, Prediction
from serve.problem import BadPicture, Problem
from serve.proof import Proof

__all__ = ["BadPicture", "Classifier", "Prediction", "Problem", "Proof"]
