"""What the exported file promises: names of its inputs and outputs, and what its metadata says."""

import json
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from stages.core.errors import StageError
from stages.network.weights import WeightsHeader, file_sha256

INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
BATCH = "batch"  # the symbolic axis
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10}  # by opset: what ONNX itself shipped them with
ONNXRUNTIME = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}  # the first release that loads them
PREPARATION = {
    "mnist": (
        "grey; ink bright on a dark ground; cropped to the ink; scaled, keeping its proportions, into a box of 5/7 "
        "of the image's side (20x20 in 28x28); centred by its centre of mass"
    ),
    "resize": "upright as EXIF says; transparency on white; grey or RGB by the channels; stretched to size, bilinear",
}


def model_metadata(header: WeightsHeader, weights: Path, opset: int) -> dict[str, str]:
    """What a consumer needs to know that has the file alone."""
    layout = {
        "name": INPUT,
        "dtype": "uint8",
        "layout": "NCHW",
        "shape": [BATCH, header.channels, header.size, header.size],
        "range": [0, 255],
    }
    return {
        "architecture": header.architecture,
        "classes": json.dumps(header.classes, ensure_ascii=False),
        "dataset": header.dataset,
        "input": json.dumps(layout),
        "ir_version": str(IR_VERSION[opset]),
        "onnxruntime": f">={ONNXRUNTIME[opset]}",
        "opset": str(opset),
        "origin": header.origin,
        "preparation": header.preparation,
        "preparation_description": PREPARATION[header.preparation],
        "weights_sha256": file_sha256(weights),
    }


def read_model(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro export_onnx`") from None
    except DecodeError as error:
        raise StageError(f"{path}: not an ONNX file ({error}); run `dvc repro -f export_onnx`") from None
    if not model.graph.node:
        raise StageError(f"{path}: not an ONNX file with a graph; run `dvc repro -f export_onnx`")
    return model


def wrong_declarations(proto: onnx.ModelProto, header: WeightsHeader, weights: Path) -> list[str]:
    """What the file says of itself, against what it must say."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"ONNX's checker refuses it: {' '.join(str(error).split())}"]
    image, classes = [header.channels, header.size, header.size], [len(header.classes)]
    wanted = {INPUT: ("UINT8", image), LOGITS: ("FLOAT", classes), PROBABILITIES: ("FLOAT", classes)}
    found = {value.name: value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)}
    wrong = [] if list(found) == list(wanted) else [f"inputs and outputs {list(found)} where {list(wanted)} should be"]
    for name in wanted.keys() & found.keys():
        dtype = onnx.TensorProto.DataType.Name(found[name].elem_type)
        first, *rest = found[name].shape.dim or [onnx.TensorShapeProto.Dimension()]
        if not first.dim_param:
            wrong.append(f"the batch axis of {name} is not symbolic")
        if (dtype, [dim.dim_value for dim in rest]) != wanted[name]:
            wrong.append(f"{name} is {dtype} {[dim.dim_value for dim in rest]} where {wanted[name]} should be")
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if set(opsets) != {""} or IR_VERSION.get(opsets[""]) != proto.ir_version:
        return [*wrong, f"operator sets {opsets} with IR version {proto.ir_version}: not one that export_onnx writes"]
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    for key, value in model_metadata(header, weights, opsets[""]).items():
        if properties.get(key) != value:
            wrong.append(f"its metadata {key} is {properties.get(key)!r} where {value!r} should be")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        wrong.append("it keeps data in another file")
    return wrong
