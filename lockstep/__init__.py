"""For those who consume model.onnx: a library here, commands, a service and its page beside it. No torch."""

from lockstep.classifier import Classifier, Prediction
from lockstep.errors import ImageError, LockstepError
from lockstep.proof import Proof

__all__ = ["Classifier", "ImageError", "LockstepError", "Prediction", "Proof"]
