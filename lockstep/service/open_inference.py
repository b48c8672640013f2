"""The Open Inference Protocol (V2, of KServe and Triton): tensors as JSON or binary in, outputs of the model out."""

import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lockstep import __version__
from lockstep.classifier import Classifier, Outputs
from lockstep.metadata import ModelMetadata
from lockstep.preparation import Pixels
from lockstep.service.asgi import Request, RequestError, Response, json_response
from lockstep.service.request_body import check_count, load_json, may_hold_booleans, parse, parse_pixels
from lockstep.service.runner import ModelRunner
from lockstep.service.settings import Settings

# https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md
MODEL_NAME = "lockstep"
MODEL_PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<action>/ready|/infer)?")
HEADER_LENGTH = b"inference-header-content-length"
SERVER = {"name": "lockstep", "version": __version__, "extensions": ["binary_tensor_data"]}


class Inference(NamedTuple):
    pixels: Pixels
    outputs: list[tuple[str, bool]]  # the names that are asked for, and whether as binary
    request_id: str | None


def version_of(classifier: Classifier) -> str:
    """The model's hash, shortened: a client that names a version gets an answer of that model or an error."""
    return classifier.sha256[:12]


class OpenInference:
    """The endpoints below /v2/models."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner, self.settings = runner, runner.settings

    def find_model(self, request: Request) -> Classifier:
        """RequestError unless the path names the model and, if it names a version, the one that answers now."""
        classifier, match = self.runner.reloader.classifier, MODEL_PATH.fullmatch(request.scope["path"])
        assert match
        if match["name"] != MODEL_NAME:
            raise RequestError(404, f"there is no model {match['name']!r:.80}, only {MODEL_NAME!r}")
        if match["version"] not in (None, version_of(classifier)):
            version = version_of(classifier)
            raise RequestError(404, f"there is no version {match['version']!r:.80} of the model, only {version!r}")
        return classifier

    async def get_model(self, request: Request) -> Response:
        classifier = self.find_model(request)
        scores = [-1, len(classifier.classes)]
        return json_response(
            {
                "name": MODEL_NAME,
                "versions": [version_of(classifier)],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *classifier.metadata.shape]}],
                "outputs": [{"name": name, "datatype": "FP32", "shape": scores} for name in Outputs._fields],
            }
        )

    async def get_model_readiness(self, request: Request) -> Response:
        self.find_model(request)
        return json_response({"name": MODEL_NAME, "ready": True})

    async def infer(self, request: Request) -> Response:
        classifier, settings, runner = self.find_model(request), self.settings, self.runner
        with runner.bytes.reservation() as reserve_bytes, runner.images.reservation() as reserve_images:
            body = await request.read_body(settings.max_bytes, settings.request_timeout, reserve_bytes)
            try:
                header_length = request.headers.get(HEADER_LENGTH)
                inference = await parse(parse_inference, body, header_length, classifier.metadata, settings)
            except RequestError as error:  # 422 of pixels is not a status of the protocol
                raise RequestError(400 if error.status == 422 else error.status, str(error)) from None
            reserve_images(len(inference.pixels))
            _, outputs = await runner.predict(classifier, inference.pixels)
        return make_response(inference, outputs, classifier)


def parse_inference(body: bytes, header_length: bytes | None, metadata: ModelMetadata, settings: Settings) -> Inference:
    """A request is JSON, which binary tensors may follow: then a header says how long the JSON is."""
    if header_length is None:
        header, binary = body, b""
    elif header_length.isdigit() and len(header_length) < 20 and int(header_length) <= len(body):
        header, binary = body[: int(header_length)], body[int(header_length) :]
    else:
        raise RequestError(400, f"Inference-Header-Content-Length is not a length within the {len(body):,} bytes sent")
    content = load_json(header, metadata, settings)
    if not isinstance(content, dict):
        raise RequestError(400, "the request is not a JSON object")
    inputs, request_id = content.get("inputs"), content.get("id")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise RequestError(400, 'the request must have one input, "image"')
    if not isinstance(request_id, str | None) or (request_id and not is_unicode(request_id)):
        raise RequestError(400, "the id of the request is not a string of Unicode characters")
    pixels = parse_input(inputs[0], binary, may_hold_booleans(header), metadata, settings)
    return Inference(pixels, parse_outputs(content), request_id)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode it: JSON can hold half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def parse_input(
    tensor: dict[str, Any], binary: bytes, is_mixed: bool, metadata: ModelMetadata, settings: Settings
) -> Pixels:
    shape, binary_size = tensor.get("shape"), read_parameters(tensor).get("binary_data_size")
    if tensor.get("name") != "image":
        raise RequestError(400, f'there is no input {tensor.get("name")!r:.80}, only "image"')
    if tensor.get("datatype") != "UINT8":
        raise RequestError(400, f"the input has the datatype {tensor.get('datatype')!r:.80}, not UINT8")
    is_shape = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    if not isinstance(shape, list) or not is_shape or tuple(shape[1:]) != metadata.shape:
        raise RequestError(400, f"the input has the shape {shape!r:.80}, not {[-1, *metadata.shape]}; -1 is any number")
    check_count(shape[0], settings)
    size = math.prod(shape)
    if binary_size is not None:
        if binary_size != size or len(binary) != size or "data" in tensor:
            raise RequestError(400, f"the input has {len(binary):,} bytes of binary data; its shape has {size:,}")
        pixels = binary
    elif binary or "data" not in tensor:
        raise RequestError(400, "the input has neither data nor the parameter binary_data_size")
    else:
        is_nested = isinstance(tensor["data"], list) and isinstance(next(iter(tensor["data"]), None), list)
        sides = tuple(shape) if is_nested else (size,)
        pixels = parse_pixels(tensor["data"], sides, "the data of the input", is_mixed)
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def parse_outputs(content: dict[str, Any]) -> list[tuple[str, bool]]:
    """All outputs if none is named. The parameters of the request are the default of its outputs'."""
    default = read_parameters(content).get("binary_data_output", False)
    asked = content.get("outputs") or [{"name": name} for name in Outputs._fields]
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise RequestError(400, "the outputs of the request are not a list of objects")
    outputs: list[tuple[str, bool]] = []
    for output in asked:
        name, parameters = output.get("name"), read_parameters(output)
        if name not in Outputs._fields:
            raise RequestError(400, f"there is no output {name!r:.80}, only {' and '.join(Outputs._fields)}")
        if unsupported := parameters.keys() - {"binary_data"}:
            raise RequestError(400, f"the output {name} has the parameter {min(unsupported)!r:.80}; not supported")
        if any(name == other for other, _ in outputs):
            raise RequestError(400, f"the output {name} is asked for twice")
        outputs.append((name, bool(parameters.get("binary_data", default))))
    return outputs


def read_parameters(part: dict[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(400, "parameters are not a JSON object")
    return parameters


def make_response(inference: Inference, outputs: Outputs, classifier: Classifier) -> Response:
    tensors, binary = [], []
    for name, is_binary in inference.outputs:
        values: NDArray[np.float32] = getattr(outputs, name)
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if is_binary:
            binary.append(values.astype("<f4").tobytes())
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    content = {"model_name": MODEL_NAME, "model_version": version_of(classifier), "outputs": tensors}
    if inference.request_id is not None:
        content["id"] = inference.request_id
    response = json_response(content)
    if not binary:
        return response
    length = str(len(response.body)).encode()
    return Response(b"".join([response.body, *binary]), 200, b"application/octet-stream", ((HEADER_LENGTH, length),))
