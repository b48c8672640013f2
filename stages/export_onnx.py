"""Writes the trained weights as one self-contained ONNX file, and a golden sample that any consumer can replay."""

import contextlib
import io
import logging
import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx
import torch
from cyclopts import Parameter
from pydantic import Field
from torch import Tensor, nn

from lockstep.rejection import RejectRule, measure_roughness
from stages.core.command import echo, run_stage
from stages.core.device import prepare_device
from stages.core.files import atomic_write
from stages.core.params import Machine, Section, read_section
from stages.core.splits import Split, read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import WeightsHeader, check_weights_fit, read_weights
from stages.proof.engines import run_torch
from stages.proof.golden import GoldenSample, write_golden
from stages.proof.onnx_file import BATCH_AXIS, INPUT, IR_VERSION, LOGITS, PROBABILITIES, model_metadata

REJECT_IMAGES = 10_000  # at most, to fit the rule on


class ExportOnnx(Section):
    renamed: ClassVar[dict[str, str]] = {"golden": "golden_images"}

    opset: Literal[18, 19, 20, 21]
    golden_images: int = Field(ge=1, le=1000)
    tolerance: float = Field(gt=0)
    reject_fraction: float = Field(ge=0, lt=0.5)


def export_onnx(
    *,
    params: Annotated[Path, Parameter(help="params.yaml")],
    weights: Annotated[Path, Parameter(help="trained weights")],
    splits: Annotated[Path, Parameter(help="folder of splits")],
    model: Annotated[Path, Parameter(help="ONNX file to write")],
    golden: Annotated[Path, Parameter(help="JSON to write the golden sample to")],
) -> None:
    """Write the trained network as an ONNX file, and a golden sample: the first test images with their outputs."""
    section, machine = read_section(params, "export_onnx", ExportOnnx), read_section(params, "machine", Machine)
    network, header = read_weights(weights)
    info = read_splits_info(splits)
    check_weights_fit(weights, header, info)
    prepare_device(machine.model_copy(update={"device": "cpu"}))
    count = section.golden_images
    images, labels = read_images(splits, "test")[:count], read_labels(splits, "test")[:count]
    proto = export_graph(network, header, section.opset)
    strip_debug_info(proto)
    metadata = model_metadata(header, info, weights, section.opset)
    if rule := fit_reject_rule(network, splits, section.reject_fraction):
        metadata |= rule.to_metadata()
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    with atomic_write(model) as tmp:
        tmp.write_bytes(proto.SerializeToString(deterministic=True))
    outputs, classes = run_torch(network, images), header.classes
    sample = GoldenSample(images, outputs, outputs.predicted(classes), section.tolerance)
    write_golden(golden, sample, [classes[label] for label in labels])
    echo(f"{model}: {model.stat().st_size} bytes, opset {section.opset}, onnxruntime {metadata['onnxruntime']}")


def fit_reject_rule(network: Classifier, splits: Path, fraction: float) -> RejectRule | None:
    """The rule that rejects this fraction of the validation images, or of the training images if there are none.

    A tenth of the fraction is for roughness: it is there for what is no image of the data set at all.
    """
    if not fraction:
        return None
    split: Split = "validation" if len(read_labels(splits, "validation")) else "train"
    images = read_images(splits, split)[:REJECT_IMAGES]
    blocks = [images[start : start + 1000] for start in range(0, len(images), 1000)]
    probabilities = np.concatenate([run_torch(network, block).probabilities.max(axis=1) for block in blocks])
    roughness = np.concatenate(list(map(measure_roughness, blocks)))
    low, high = np.quantile(roughness, [fraction / 20, 1 - fraction / 20])
    # Four digits, since more would be of this CPU; rounded so that no more images are rejected, also near 1.
    least, low, high = 1e4 * np.quantile(probabilities, fraction), 1e4 * low, 1e4 * high
    return RejectRule(math.floor(least) / 1e4, math.floor(low) / 1e4, math.ceil(high) / 1e4)


class ExportModule(nn.Module):
    """The network with both outputs of the ONNX file."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, logits.softmax(1)


def export_graph(network: Classifier, header: WeightsHeader, opset: int) -> onnx.ModelProto:
    # Two images, since the exporter takes an axis of size 1 for a constant.
    example = torch.zeros(2, header.channels, header.size, header.size, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter's progress
        program = torch.onnx.export(
            ExportModule(network).eval(),
            (example,),
            input_names=[INPUT],
            output_names=[LOGITS, PROBABILITIES],
            opset_version=opset,
            dynamic_shapes={"image": {0: torch.export.Dim(BATCH_AXIS, min=1)}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    proto.ir_version = IR_VERSION[opset]
    proto.producer_version = torch.__version__.split("+")[0]  # the builds +cu130 and +cpu have the same exporter
    return proto


def strip_debug_info(proto: onnx.ModelProto) -> None:
    """Remove stack traces, doc strings and paths, which differ between machines and reveal where the file was built."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.name = "classifier"


if __name__ == "__main__":
    run_stage(export_onnx)
