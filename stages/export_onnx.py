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

from stages.common.command import run, say
from stages.common.device import prepare
from stages.common.golden import write_golden
from stages.common.models import Classifier
from stages.common.onnx_file import BATCH, INPUT, IR_VERSION, LOGITS, PROBABILITIES, metadata
from stages.common.params import Machine, Section, read_section
from stages.common.parity import Answer
from stages.common.splits import read_about, read_images, read_labels
from stages.common.weights import Header, check_fits, read_weights
from stages.common.whole import whole


class ExportOnnx(Section):
    opset: Literal[18, 19, 20, 21]
    golden: int = Field(ge=1, le=1000)
    tolerance: float = Field(gt=0)


def export_onnx(*, params: Path, weights: Path, splits: Path, model: Path, golden: Path) -> None:
    """Write WEIGHTS as MODEL, and a GOLDEN sample of test images with the outputs expected of it."""
    section, machine = read_section(params, "export_onnx", ExportOnnx), read_section(params, "machine", Machine)
    network, header = read_weights(weights)
    about = read_about(splits)
    check_fits(weights, header, about)
    prepare(machine.model_copy(update={"device": "cpu"}))
    served = Served(network).eval()
    proto = exported(served, header, section.opset)
    strip(proto)
    properties = metadata(header, weights, section.opset)
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    images, labels = read_images(splits, "test")[: section.golden], read_labels(splits, "test")[: section.golden]
    with whole(model) as beside:
        beside.write_bytes(proto.SerializeToString(deterministic=True))
    write_golden(golden, images, labels, served.answer(images), header.classes, section.tolerance)
    say(f"{model}: {model.stat().st_size} bytes, opset {section.opset}, onnxruntime {properties['onnxruntime']}")


class Served(nn.Module):
    """What a consumer gets: pixels to logits and probabilities."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, logits.softmax(1)

    @torch.no_grad()
    def answer(self, images: NDArray[np.uint8]) -> Answer:
        return Answer(*(part.numpy() for part in self(torch.from_numpy(images))))


def exported(served: Served, header: Header, opset: int) -> onnx.ModelProto:
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


def strip(proto: onnx.ModelProto) -> None:
    """Take out what differs from machine to machine and says where it was built: stack traces, doc strings, paths."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.name = "classifier"


if __name__ == "__main__":
    run(export_onnx)
