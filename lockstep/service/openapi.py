"""What the service's OpenAPI document says, written from the model that answers now: sizes and classes are true."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from lockstep.metadata import ModelMetadata
from lockstep.service.request_body import FIELD, Limits

PATHS = ("/", "/predict", "/model", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")
SAID = {
    400: "The body is not what its content type says, or was cut off",
    408: "It did not arrive in time",
    413: "Too many bytes, or too many images",
    415: "Another content type",
    422: "Not a picture, one that is too large, one that shows nothing, or pixels of another shape",
    503: "Too much to do: ask again after the seconds of Retry-After",
}
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


def answers(schema: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """Arguments of a route: what it answers, and nothing else."""
    others = {status: {"description": SAID[status], "content": ERROR} for status in statuses}
    good = {"description": "Done", "content": {"application/json": {"schema": schema}}}
    return {"responses": {200: good, **others}, "response_model": None}


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def extensible_object(**properties: Any) -> dict[str, Any]:
    """Allows additional properties."""
    return {**an_object(**properties), "additionalProperties": True}


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
NUMBER = {"type": "number", "minimum": 0}
CERTIFICATE = {
    **extensible_object(
        format=WHOLE,
        model_sha256=TEXT,
        weights_sha256=TEXT,
        golden_sha256=TEXT,
        dataset=extensible_object(name=TEXT, origin=TEXT, splits_sha256=TEXT),
        quality=extensible_object(
            **dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "min_accuracy"), NUMBER), images=WHOLE
        ),
        parity=extensible_object(configurations=WHOLE, images=WHOLE, atol=NUMBER, margin=NUMBER),
        environment={"type": "object"},
        sha256={"type": "string", "description": "Of all else, as canonical JSON"},
    ),
    "description": "What the pipeline proved of the model before it certified it",
}
PREDICT = answers({"$ref": "#/components/schemas/Predictions"}, 400, 408, 413, 415, 422, 503)
MODEL = answers({"$ref": "#/components/schemas/Model"})
HEALTH = answers(an_object(status=TEXT))
READY = answers(an_object(status=TEXT), 503)
METRICS: dict[str, Any] = {
    "responses": {200: {"description": "Prometheus's text form", "content": {"text/plain": {"schema": TEXT}}}},
    "response_model": None,
}


def describe(app: FastAPI, facts: ModelMetadata, limits: Limits) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description=f"Labels images: {facts.dataset}, {len(facts.classes)} classes.",
    )
    predict = whole["paths"]["/predict"]["post"]
    predict["requestBody"] = request_body(facts, limits)
    share = {"type": "number", "minimum": 0, "maximum": 1}
    label = {"type": "string", "enum": list(facts.classes)}
    prediction = an_object(
        name={"type": ["string", "null"], "description": "Of the file, in a form"},
        label=label,
        probability=share,
        probabilities=an_object(**dict.fromkeys(facts.classes, share)),
    )
    prediction["properties"]["seen"] = {
        "type": "string",
        "format": "byte",
        "description": f"With ?seen=true: the {' x '.join(map(str, facts.shape))} pixels that the network was given",
    }
    whole.setdefault("components", {})["schemas"] = {
        "Error": an_object(error={"type": "string", "description": "What is wrong, in a line"}),
        "Predictions": an_object(model=TEXT, predictions={"type": "array", "items": prediction}),
        "Model": an_object(
            sha256=TEXT,
            classes={"type": "array", "items": TEXT},
            input=an_object(channels=WHOLE, height=WHOLE, width=WHOLE),
            preparation=TEXT,
            dataset=TEXT,
            metadata={"type": "object", "additionalProperties": TEXT},
            golden_difference={"type": ["number", "null"]},
            certificate={
                "anyOf": [{"$ref": "#/components/schemas/Certificate"}, {"type": "null"}],
                "description": "As it stands in the file; null of a service that runs with --unproven",
            },
            refused={"type": ["string", "null"], "description": "Why the newest files were not taken up"},
            metrics={"type": ["object", "null"], "description": "The report, if it is of the model that answers"},
        ),
        "Certificate": CERTIFICATE,
    }
    return whole


def request_body(facts: ModelMetadata, limits: Limits) -> dict[str, Any]:
    image: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 255}
    for side in reversed(facts.shape if facts.channels > 1 else facts.shape[1:]):
        image = {"type": "array", "items": image, "minItems": side, "maxItems": side}
    many = {"type": "array", "minItems": 1, "maxItems": limits.images}
    picture = {"type": "string", "format": "binary", "description": "A PNG, JPEG, GIF, BMP, WebP, TIFF or PPM file"}
    blank = [[0] * facts.width for _ in range(facts.height)]
    example = [blank if facts.channels == 1 else [blank] * facts.channels]
    return {
        "required": True,
        "content": {
            "application/json": {"schema": an_object(**{FIELD: {**many, "items": image}}), "example": {FIELD: example}},
            "multipart/form-data": {"schema": an_object(**{FIELD: {**many, "items": picture}})},
            **{kind: {"schema": picture} for kind in ("image/png", "image/jpeg", "application/octet-stream")},
        },
    }
