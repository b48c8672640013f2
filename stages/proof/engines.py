"""The ways to run an ONNX file: ONNX Runtime in every configuration, and ONNX's own reference evaluator."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from stages.proof.onnx_file import INPUT, LOGITS, PROBABILITIES
from stages.proof.parity import Outputs

MEMBERS = onnxruntime.GraphOptimizationLevel.__members__
LEVELS = sorted(MEMBERS, key=lambda name: int(MEMBERS[name]))
REFERENCE = "reference evaluator"


@dataclass(frozen=True)
class Configuration:
    """One way to run the file, on one set of images."""

    images: str
    engine: str = "onnxruntime"
    level: str = "ORT_ENABLE_ALL"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch: int = 1000

    def __str__(self) -> str:
        if self.engine != "onnxruntime":
            return self.engine
        level = self.level.removeprefix("ORT_").removeprefix("ENABLE_").replace("DISABLE_ALL", "NONE").lower()
        provider = self.provider.removesuffix("ExecutionProvider")
        return f"{provider} {level}, {self.images}, t{self.threads} b{self.batch}"  # short: it labels a plot


def run_onnx(proto: onnx.ModelProto, configuration: Configuration, images: NDArray[np.uint8]) -> Outputs:
    """The file's answers, run as the configuration says."""
    if configuration.engine == REFERENCE:
        return Outputs(*ReferenceEvaluator(proto).run([LOGITS, PROBABILITIES], {INPUT: images}))
    session = open_session(proto, configuration)
    step = configuration.batch
    answers = [
        session.run([LOGITS, PROBABILITIES], {INPUT: images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    return Outputs(*(np.concatenate(part) for part in zip(*answers, strict=True)))


def open_session(proto: onnx.ModelProto, configuration: Configuration) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, configuration.level)
    options.intra_op_num_threads = configuration.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it takes a core from other work
    exact = {"use_tf32": "0"} if configuration.provider == "CUDAExecutionProvider" else {}
    provider = (configuration.provider, exact)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=[provider])
    if session.get_providers()[0] != configuration.provider:
        raise RuntimeError(f"{configuration.provider} could not be loaded")  # ONNX Runtime takes the CPU instead
    return session
