"""Trained weights in; one self-contained ONNX file out, and a golden sample that any consumer can replay."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device
from stages.core.files import atomic_write
from stages.core.params import Machine, Section, read_section
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import WeightsHeader, check_weights_fit, read_weights
from stages.proof.golden import write_golden
from stages.proof.onnx_file import BATCH, INPUT, IR_VERSION, LOGITS, PROBABILITIES, model_metadata
from stages.proof.parity import Outputs


class ExportOnnx(Section):
    opset: Literal[18, 19, 20, 21]
    golden: int = Field(ge=1, le=1000)
    tolerance: float = Field(gt=0)


def export_onnx(*, params: Path, weights: Path, splits: Path, model: Path, golden: Path) -> None:
    """Write WEIGHTS as MODEL, and a GOLDEN sample of test images with the outputs expected of it."""
    section, machine = read_section(params, "export_onnx", ExportOnnx), read_section(params, "machine", Machine)
    network, header = read_weights(weights)
    about = read_splits_info(splits)
    check_weights_fit(weights, header, about)
    prepare_device(machine.model_copy(update={"device": "cpu"}))
    served = ExportModule(network).eval()
    proto = export_graph(served, header, section.opset)
    strip_debug_info(proto)
    properties = model_metadata(header, weights, section.opset)
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    images, labels = read_images(splits, "test")[: section.golden], read_labels(splits, "test")[: section.golden]
    with atomic_write(model) as beside:
        beside.write_bytes(proto.SerializeToString(deterministic=True))
    write_golden(golden, images, labels, served.answer(images), header.classes, section.tolerance)
    echo(f"{model}: {model.stat().st_size} bytes, opset {section.opset}, onnxruntime {properties['onnxruntime']}")


class ExportModule(nn.Module):
    """What a consumer gets: pixels to logits and probabilities."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, logits.softmax(1)

    @torch.no_grad()
    def answer(self, images: NDArray[np.uint8]) -> Outputs:
        return Outputs(*(part.numpy() for part in self(torch.from_numpy(images))))


def export_graph(served: ExportModule, header: WeightsHeader, opset: int) -> onnx.ModelProto:
    """The graph as torch's exporter makes it; its progress goes to the log's debug level, not to the terminal."""
    example = torch.zeros(2, header.channels, header.size, header.size, dtype=torch.uint8)  # one would fix the axis
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            served,
            (example,),
            input_names=[INPUT],
            output_names=[LOGITS, PROBABILITIES],
            opset_version=opset,
            dynamic_shapes={"image": {0: torch.export.Dim(BATCH, min=1)}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    proto.ir_version = IR_VERSION[opset]
    proto.producer_version = torch.__version__.split("+")[0]  # +cu130 and +cpu are the same exporter
    return proto


def strip_debug_info(proto: onnx.ModelProto) -> None:
    """Take out what differs from machine to machine and says where it was built: stack traces, doc strings, paths."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.name = "classifier"


if __name__ == "__main__":
    run_stage(export_onnx)
