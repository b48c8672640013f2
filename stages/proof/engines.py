"""Runs images through the network in PyTorch, or the ONNX file in ONNX Runtime or ONNX's reference evaluator."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from stages.proof.onnx_file import INPUT, LOGITS, PROBABILITIES
from stages.proof.parity import Outputs

ORT_LEVELS = onnxruntime.GraphOptimizationLevel.__members__
OPTIMIZATION_LEVELS = sorted(ORT_LEVELS, key=lambda name: int(ORT_LEVELS[name]))
REFERENCE_EVALUATOR = "reference evaluator"


@dataclass(frozen=True)
class InferenceConfig:
    """How to run the ONNX file, and on which set of images: test, sample, reference or golden."""

    image_set: str
    engine: str = "onnxruntime"
    level: str = "ORT_ENABLE_ALL"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch: int = 1000

    def __str__(self) -> str:
        """A short name for tables and error messages."""
        if self.engine == REFERENCE_EVALUATOR:
            return self.engine
        level = self.level.removeprefix("ORT_").removeprefix("ENABLE_").replace("DISABLE_ALL", "NONE").lower()
        provider = self.provider.removesuffix("ExecutionProvider")
        return f"{provider} {level}, {self.image_set}, t{self.threads} b{self.batch}"


@torch.no_grad()
def run_torch(network: nn.Module, images: NDArray[np.uint8]) -> Outputs:
    logits = torch.cat([network(batch) for batch in torch.from_numpy(images).split(1000)])
    return Outputs(logits.numpy(), logits.softmax(1).numpy())


def run_onnx(proto: onnx.ModelProto, configuration: InferenceConfig, images: NDArray[np.uint8]) -> Outputs:
    if configuration.engine == REFERENCE_EVALUATOR:
        return Outputs(*ReferenceEvaluator(proto).run([LOGITS, PROBABILITIES], {INPUT: images}))
    session = open_session(proto, configuration)
    batches = (images[start : start + configuration.batch] for start in range(0, len(images), configuration.batch))
    outputs = [session.run([LOGITS, PROBABILITIES], {INPUT: batch}) for batch in batches]
    return Outputs(*(np.concatenate(arrays) for arrays in zip(*outputs, strict=True)))


def open_session(proto: onnx.ModelProto, configuration: InferenceConfig) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = ORT_LEVELS[configuration.level]
    options.intra_op_num_threads = configuration.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning takes a core from other work
    provider_options = {"use_tf32": "0"} if configuration.provider == "CUDAExecutionProvider" else {}
    providers = [(configuration.provider, provider_options)]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
    if session.get_providers()[0] != configuration.provider:  # ONNX Runtime falls back to the CPU without an error
        raise RuntimeError(f"{configuration.provider} could not be loaded")
    return session
