"""The Open Inference Protocol (V2): Triton's own client against a running service, and requests that are wrong."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from served import Service

with warnings.catch_warnings():  # of gevent, which the client brings
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

Tested = tuple[np.ndarray, np.ndarray]
INFER = "/v2/models/lockstep/infer"


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.url.removeprefix("http://").rstrip("/")) as client:
        yield client


def image_input(images: np.ndarray, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def test_tritons_client_reads_health_and_metadata(client: triton.InferenceServerClient, service: Service) -> None:
    version = service.request("/model").json["sha256"][:12]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lockstep")
    assert client.is_model_ready("lockstep", version)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("lockstep", "1")
    server, model = client.get_server_metadata(), client.get_model_metadata("lockstep", version)
    assert (server["name"], server["extensions"]) == ("lockstep", ["binary_tensor_data"])
    assert model == client.get_model_metadata("lockstep")
    assert (model["versions"], model["platform"]) == ([version], "onnxruntime_onnx")
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}]
    assert model["outputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 10]} for name in ("logits", "probabilities")
    ]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_tritons_client_gets_the_outputs_that_it_asks_for(
    client: triton.InferenceServerClient, service: Service, test_set: Tested, binary_input: bool, binary_output: bool
) -> None:
    images = test_set[0][:5]
    asked = [triton.InferRequestedOutput("probabilities", binary_data=binary_output)]
    inputs = [image_input(images, binary_input)]
    result = client.infer("lockstep", inputs, outputs=asked, request_id="a request")
    predictions = service.predict_prepared(*images[:, 0]).json["predictions"]
    expected = np.array([list(prediction["probabilities"].values()) for prediction in predictions], np.float32)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected)
    assert result.as_numpy("logits") is None
    response = result.get_response()
    assert (response["id"], response["model_name"]) == ("a request", "lockstep")
    assert ("data" in response["outputs"][0]) != binary_output
    everything = client.infer("lockstep", inputs, model_version=response["model_version"])
    logits = everything.as_numpy("logits")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, atol=1e-6)


def test_tritons_client_sees_what_is_wrong(client: triton.InferenceServerClient, test_set: Tested) -> None:
    images = test_set[0][:2]
    other = triton.InferInput("picture", images.shape, "UINT8")
    other.set_data_from_numpy(images)
    for name, tensor, message in (
        ("other", image_input(images, True), "there is no model 'other', only 'lockstep'"),
        ("lockstep", image_input(images[:, :, 1:], True), r"the shape \[2, 1, 27, 28\], not \[-1, 1, 28, 28\]"),
        ("lockstep", other, "there is no input 'picture', only \"image\""),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(name, [tensor])
    with pytest.raises(InferenceServerException, match="there is no output 'label', only logits and probabilities"):
        client.infer("lockstep", [image_input(images, True)], outputs=[triton.InferRequestedOutput("label")])
    classes = triton.InferRequestedOutput("logits", class_count=3)
    with pytest.raises(InferenceServerException, match="the parameter 'classification'; not supported"):
        client.infer("lockstep", [image_input(images, True)], outputs=[classes])


def tensor_of(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.tolist(), **changes}


def test_data_may_be_nested_or_flat(service: Service, test_set: Tested) -> None:
    images = test_set[0][:2]
    answers = [
        service.request(INFER, json.dumps({"inputs": [tensor_of(images, data=data)]}).encode(), "application/json")
        for data in (images.tolist(), images.ravel().tolist())
    ]
    assert answers[0].json == answers[1].json
    assert [len(output["data"]) for output in answers[0].json["outputs"]] == [20, 20]


BLANK = np.zeros((1, 1, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        ([], 400, "not a JSON object"),
        ({}, 400, "must have one input"),
        ({"inputs": [tensor_of(BLANK)] * 2}, 400, "must have one input"),
        ({"inputs": [tensor_of(BLANK)], "id": 1}, 400, "the id of the request is not a string"),
        ({"inputs": [tensor_of(BLANK)], "id": "\ud800"}, 400, "not a string of Unicode"),
        ({"inputs": [tensor_of(BLANK)], "outputs": [{"name": "logits"}] * 2}, 400, "logits is asked for twice"),
        ({"inputs": [tensor_of(BLANK)], "parameters": 1}, 400, "parameters are not a JSON object"),
        ({"inputs": [tensor_of(BLANK)], "outputs": [1]}, 400, "not a list of objects"),
        ({"inputs": [tensor_of(BLANK, datatype="FP32")]}, 400, "'FP32', not UINT8"),
        ({"inputs": [tensor_of(BLANK, shape=[0, 1, 28, 28])]}, 400, "the shape [0, 1, 28, 28]"),
        ({"inputs": [tensor_of(BLANK, shape="image")]}, 400, "the shape 'image'"),
        ({"inputs": [tensor_of(BLANK, shape=[2, 1, 28, 28])]}, 400, "the data of the input is not 2 x 1 x 28 x 28"),
        ({"inputs": [tensor_of(BLANK, data=[1, 2])]}, 400, "the data of the input is not 784"),
        ({"inputs": [tensor_of(BLANK, data=[256] * 784)]}, 400, "0 to 255"),
        ({"inputs": [tensor_of(BLANK, data=["a"] * 784)]}, 400, "not numbers"),
        ({"inputs": [tensor_of(BLANK, data=None)]}, 400, "the data of the input is not 784"),
        ({"inputs": [{**tensor_of(BLANK), "data": [], "parameters": {"binary_data_size": 784}}]}, 400, "0 bytes"),
        ({"inputs": [tensor_of(BLANK, shape=[65, 1, 28, 28])]}, 413, "more than 64 images"),
    ],
)
def test_wrong_requests_get_an_error_of_one_line(service: Service, content: Any, status: int, message: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = service.request(INFER, body, "application/json")
    assert response.status == status
    assert message in response.json["error"]
    assert list(response.json) == ["error"]


def test_wrong_lengths_of_binary_data_are_refused(service: Service) -> None:
    header = {key: value for key, value in tensor_of(BLANK).items() if key != "data"}
    content = json.dumps({"inputs": [{**header, "parameters": {"binary_data_size": 784}}]}).encode()
    for body, length, message in (
        (content + bytes(783), len(content), "783 bytes of binary data; its shape has 784"),
        (content + bytes(784), len(content) + 785, "not a length within"),
        (content + bytes(784), "-1", "not a length within"),
        (content + bytes(784), "9" * 5000, "not a length within"),
        (content, len(content), "0 bytes of binary data"),
    ):
        headers = {"Inference-Header-Content-Length": str(length)}
        response = service.request(INFER, body, "application/octet-stream", headers=headers)
        assert (response.status, message in response.json["error"]) == (400, True), response.json
    assert service.request(INFER).status == 405
    assert service.request("/v2/models/lockstep/versions/1/infer", b"{}").status == 404
