"""The declarations of the ONNX file: names and types of its inputs and outputs, versions and metadata."""

import json
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from stages.core.errors import StageError
from stages.core.files import file_sha256
from stages.core.splits import SplitsInfo
from stages.network.weights import WeightsHeader

INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
BATCH_AXIS = "batch"  # the name of the symbolic axis
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10}  # by opset: of the ONNX release that introduced it
MIN_ONNXRUNTIME = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}  # by opset: the first release that loads it
PREPARATION = {
    "mnist": (
        "grey; ink bright on a dark ground; cropped to the ink; scaled, keeping its proportions, into a box of 5/7 "
        "of the image's side (20x20 in 28x28); centred by its centre of mass"
    ),
    "resize": "upright as EXIF says; transparency on white; grey or RGB by the channels",
}
FIT = {
    "stretch": "stretched to size, bilinear",
    "crop": "the largest centred part of the network's proportions, scaled to size, bilinear",
    "pad": "scaled into the size, keeping its proportions, bilinear; centred on the median colour of its border",
}
DEPTH = "pixels of more than 8 bits: black to white is 0 to 65535 of integers, 0 to 1 of floating-point numbers"


def describe_preparation(info: SplitsInfo) -> str:
    fit = f"; {FIT[info.fit]}" if info.preparation == "resize" else ""
    return f"{PREPARATION[info.preparation]}{fit}; {DEPTH}"


def model_metadata(header: WeightsHeader, info: SplitsInfo, weights: Path, opset: int) -> dict[str, str]:
    """The metadata_props, from which a consumer learns everything that the graph does not say."""
    shape = [BATCH_AXIS, header.channels, header.size, header.size]
    image = {"name": INPUT, "dtype": "uint8", "layout": "NCHW", "shape": shape, "range": [0, 255]}
    return {
        "architecture": header.architecture,
        "classes": json.dumps(header.classes, ensure_ascii=False),
        "dataset": header.dataset,
        "fit": info.fit,
        "input": json.dumps(image),
        "ir_version": str(IR_VERSION[opset]),
        "onnxruntime": f">={MIN_ONNXRUNTIME[opset]}",
        "opset": str(opset),
        "origin": header.origin,
        "preparation": header.preparation,
        "preparation_description": describe_preparation(info),
        "weights_sha256": file_sha256(weights),
    }


def read_model(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run `dvc repro export_onnx`") from None
    except DecodeError as error:
        raise StageError(f"{path}: not an ONNX file ({error}); run `dvc repro -f export_onnx`") from None
    if not proto.graph.node:
        raise StageError(f"{path}: not an ONNX file with a graph; run `dvc repro -f export_onnx`")
    return proto


def find_declaration_errors(
    proto: onnx.ModelProto, header: WeightsHeader, info: SplitsInfo, weights: Path
) -> list[str]:
    """Differences from the declarations that export_onnx writes for these weights; empty if there are none."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"ONNX's checker refuses it: {' '.join(str(error).split())}"]
    errors = find_type_errors(proto, header)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if set(opsets) != {""} or IR_VERSION.get(opsets[""]) != proto.ir_version:
        return [*errors, f"operator sets {opsets} with IR version {proto.ir_version}: not one that export_onnx writes"]
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    for key, value in model_metadata(header, info, weights, opsets[""]).items():
        if properties.get(key) != value:
            errors.append(f"its metadata {key} is {properties.get(key)!r} where {value!r} should be")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        errors.append("it keeps data in another file")
    return errors


def find_type_errors(proto: onnx.ModelProto, header: WeightsHeader) -> list[str]:
    image, classes = [header.channels, header.size, header.size], [len(header.classes)]
    expected = {INPUT: ("UINT8", image), LOGITS: ("FLOAT", classes), PROBABILITIES: ("FLOAT", classes)}
    types = {value.name: value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)}
    errors = []
    if list(types) != list(expected):
        errors.append(f"inputs and outputs {list(types)} where {list(expected)} should be")
    for name in [name for name in expected if name in types]:
        dtype = onnx.TensorProto.DataType.Name(types[name].elem_type)
        batch_axis, *axes = types[name].shape.dim or [onnx.TensorShapeProto.Dimension()]
        sizes = [axis.dim_value for axis in axes]
        if not batch_axis.dim_param:
            errors.append(f"the batch axis of {name} is not symbolic")
        if (dtype, sizes) != expected[name]:
            errors.append(f"{name} is {dtype} {sizes} where {expected[name]} should be")
    return errors
