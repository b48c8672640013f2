"""Makes the OpenAPI document of the service, with the classes and sizes of the model that answers now."""

from typing import Any

from lockstep.classifier import Classifier
from lockstep.metadata import ModelMetadata
from lockstep.service.request_body import FIELD, RAW_PIXELS
from lockstep.service.settings import Settings

Schema = dict[str, Any]
STATUSES = {
    400: "The body does not match its content type, or was cut off",
    403: "The request is for a host that is not allowed, or comes from a page of another site",
    408: "The body of the request did not arrive in time",
    413: "Too many bytes, or too many images",
    415: "Unsupported content type",
    422: "No image, one that is not readable, too large or shows nothing, pixels of another shape or value, or a "
    "model that cannot reject",
    503: "Too busy, or not ready",
}
# Loads Swagger UI from a content delivery network: the only page that needs one.
DOCS_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lockstep</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui.css">
<div id="docs"></div>
<script src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#docs"})</script>
"""


def closed_object(**properties: Schema) -> Schema:
    return {**open_object(**properties), "additionalProperties": False}


def open_object(**properties: Schema) -> Schema:
    """Allows further properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def operation(name: str, summary: str, schema: Schema, *statuses: int, media_type: str = "application/json") -> Schema:
    """One operation of a path: its answer with status 200, and its errors."""
    responses = {"200": {"description": "Successful response", "content": {media_type: {"schema": schema}}}}
    for status in sorted({403, *statuses}):
        content = {"application/json": {"schema": reference("Error")}}
        responses[str(status)] = {"description": STATUSES[status], "content": content}
    return {"operationId": name, "summary": summary, "responses": responses}


TEXT, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number", "minimum": 0}
PROBABILITY = {**NUMBER, "maximum": 1}
BOOLEAN = {"type": "boolean", "default": False}
STATUS = closed_object(status=TEXT)
QUALITY = open_object(accuracy=NUMBER, accuracy_low=NUMBER, accuracy_high=NUMBER, min_accuracy=NUMBER, images=INTEGER)
QUALITY["properties"] |= {"macro_f1": NUMBER, "min_macro_f1": NUMBER}  # not in certificates of 0.2.0 or older
CERTIFICATE = open_object(
    format=INTEGER,
    model_sha256=TEXT,
    weights_sha256=TEXT,
    golden_sha256=TEXT,
    dataset=open_object(name=TEXT, origin=TEXT, splits_sha256=TEXT),
    quality=QUALITY,
    parity=open_object(configurations=INTEGER, images=INTEGER, atol=NUMBER, margin=NUMBER),
    environment={"type": "object"},
    sha256={**TEXT, "description": "Of all other keys, as canonical JSON"},
)
MODEL = closed_object(
    sha256=TEXT,
    classes=array(TEXT),
    input=closed_object(channels=INTEGER, height=INTEGER, width=INTEGER),
    preparation=TEXT,
    dataset=TEXT,
    metadata={"type": "object", "additionalProperties": TEXT},
    golden_max_abs_error={"type": ["number", "null"]},
    certificate={
        "anyOf": [reference("Certificate"), {"type": "null"}],
        "description": "The content of certificate.json; null if the service runs with --no-verify",
    },
    reload_error={"type": ["string", "null"], "description": "Why the newest files were not loaded"},
    metrics={"type": ["object", "null"], "description": "The report, if it is of the model that answers"},
)


def describe_api(classifier: Classifier, settings: Settings) -> Schema:
    metadata = classifier.metadata
    parameters = [
        {"name": name, "in": "query", "required": False, "description": text, "schema": BOOLEAN}
        for name, text in (
            ("include_input", "Return the network's input too"),
            ("reject", "Give the label null to an image that looks like none of the classes"),
        )
    ]
    predict = operation(
        "predict",
        "Classify images: the bytes of an image file, a form of image files, or pixels as JSON or bytes",
        closed_object(model=TEXT, predictions=array(reference("Prediction"))),
        *STATUSES,
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lockstep",
            "version": classifier.sha256[:12],
            "description": f"Classifies images: {metadata.dataset}, {len(metadata.classes)} classes. The Open "
            "Inference Protocol (V2 of KServe and Triton) is at /v2.",
        },
        "paths": {
            "/predict": {
                "post": {**predict, "parameters": parameters, "requestBody": request_body(metadata, settings)}
            },
            "/model": {
                "get": operation("model", "The model's hash, metadata, certificate and report", reference("Model"))
            },
            "/healthz": {"get": operation("health", "The process answers", STATUS)},
            "/readyz": {"get": operation("ready", "The service can classify images now", STATUS, 503)},
            "/metrics": {"get": operation("metrics", "Metrics for Prometheus", TEXT, media_type="text/plain")},
        },
        "components": {
            "schemas": {
                "Error": closed_object(error={**TEXT, "description": "What is wrong, in one line"}),
                "Prediction": prediction_schema(metadata),
                "Model": MODEL,
                "Certificate": CERTIFICATE,
            }
        },
    }


def prediction_schema(metadata: ModelMetadata) -> Schema:
    schema = closed_object(
        name={"type": ["string", "null"], "description": "Of the file, in a form"},
        label={
            "type": ["string", "null"],
            "enum": [*metadata.classes, None],
            "description": "Null only with ?reject=true",
        },
        probability=PROBABILITY,
        probabilities=closed_object(**dict.fromkeys(metadata.classes, PROBABILITY)),
    )
    size = " x ".join(map(str, metadata.shape))
    description = f"With ?include_input=true: the network's input, {size} bytes"
    schema["properties"]["input"] = {**TEXT, "format": "byte", "description": description}
    return schema


def request_body(metadata: ModelMetadata, settings: Settings) -> Schema:
    pixels: Schema = {**INTEGER, "minimum": 0, "maximum": 255}
    blank: Any = 0
    for side in reversed(metadata.shape if metadata.channels > 1 else metadata.shape[1:]):
        pixels, blank = array(pixels, minItems=side, maxItems=side), [blank] * side
    file = {**TEXT, "format": "binary", "description": "A PNG, JPEG, GIF, BMP, WebP, TIFF or PPM file"}
    size = " x ".join(map(str, metadata.shape))
    raw = {**file, "description": f"The pixels of one or more images: each {size} bytes"}
    limits = {"minItems": 1, "maxItems": settings.max_images}
    json_schema, form_schema = (closed_object(**{FIELD: array(items, **limits)}) for items in (pixels, file))
    return {
        "required": True,
        "content": {
            "application/json": {"schema": json_schema, "example": {FIELD: [blank]}},
            "multipart/form-data": {"schema": form_schema},
            RAW_PIXELS: {"schema": raw},
            **{kind: {"schema": file} for kind in ("image/png", "image/jpeg", "application/octet-stream")},
        },
    }
