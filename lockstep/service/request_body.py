"""Reads the images in the body of a request: image files, a form of them, or pixels as JSON or bytes."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lockstep.metadata import ModelMetadata
from lockstep.preparation import Pixels
from lockstep.service.asgi import Request, RequestError
from lockstep.service.settings import Settings

Parsed = TypeVar("Parsed")
FIELD = "images"  # of a form and of JSON
RAW_PIXELS = "application/x-lockstep-pixels"  # application/octet-stream is an image file
JSON_BYTES_PER_PIXEL = 16  # at most
MAX_BLOCKING_BYTES = 200_000  # of a body that is parsed at once; a larger one in a thread, which delays others less


class ImageFile(NamedTuple):
    name: str | None  # in a form
    content: bytes


async def parse_images(
    request: Request, body: bytes, metadata: ModelMetadata, settings: Settings
) -> Pixels | list[ImageFile]:
    """By content type. Pixels are the network's input: uint8[n, channels, height, width]."""
    content_type = request.header(b"content-type").split(";")[0].strip().lower()
    images: Pixels | list[ImageFile]
    if content_type == "application/json":
        images = await parse(parse_json, body, metadata, settings)
    elif content_type == RAW_PIXELS:
        images = parse_raw(body, metadata)
    elif content_type == "multipart/form-data":
        images = await parse_form(request, body, settings)
    elif content_type.startswith("image/") or content_type == "application/octet-stream":
        images = [ImageFile(None, body)]
    else:
        raise RequestError(
            415,
            f"content type {repr(content_type)[:80] if content_type else 'missing'}; supported: image/*, "
            f"application/octet-stream, multipart/form-data, application/json, {RAW_PIXELS}",
        )
    check_count(len(images), settings)
    return images


async def parse(parser: Callable[..., Parsed], body: bytes, *arguments: Any) -> Parsed:
    """The result of `parser(body, *arguments)`."""
    if len(body) <= MAX_BLOCKING_BYTES:
        return parser(body, *arguments)
    return await asyncio.to_thread(parser, body, *arguments)


def check_count(images: int, settings: Settings) -> None:
    if not images:
        raise RequestError(422, "the request contains no image")
    if images > settings.max_images:
        raise RequestError(413, f"the request contains more than {settings.max_images} images")


def parse_raw(body: bytes, metadata: ModelMetadata) -> Pixels:
    size = math.prod(metadata.shape)
    if len(body) % size:
        shape = " x ".join(map(str, metadata.shape))
        raise RequestError(422, f"{len(body):,} bytes are not a multiple of {size:,}, the pixels of an image: {shape}")
    return np.frombuffer(body, np.uint8).reshape(-1, *metadata.shape)


async def parse_form(request: Request, body: bytes, settings: Settings) -> list[ImageFile]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = parse_options_header(request.headers[b"content-type"])[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "not a valid form: its content type names no boundary")
    if b"--" + boundary + b"--" not in body[-len(boundary) - 1000 :]:
        raise RequestError(400, "not a valid form: it is cut off before its end")
    parser = MultiPartParser(
        Headers(scope=request.scope),
        stream(),
        max_files=settings.max_images + 1,
        max_fields=1,
        max_part_size=settings.max_bytes,
    )
    parser.spool_max_size = settings.max_bytes + 1  # keeps files in memory, where the body is already
    try:  # in a thread: a form of many small parts takes seconds
        form = await asyncio.to_thread(asyncio.run, parser.parse())
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            check_count(settings.max_images + 1, settings)
        raise RequestError(400, f"not a valid form: {error.message:.200}") from None
    except Exception:  # the parser raises errors of many types for broken bytes
        raise RequestError(400, "not a valid form") from None
    images = []
    for name, file in form.multi_items():
        if name != FIELD or not isinstance(file, UploadFile):
            raise RequestError(422, f"the form has a part {name!r:.80} that is not a file named {FIELD!r}")
        images.append(ImageFile(clean_file_name(file.filename), await file.read()))
        await file.close()
    return images


def clean_file_name(name: str | None) -> str | None:
    """On one line, and without characters that UTF-8 cannot encode or nobody can read."""
    text = (name or "").encode("utf-8", "replace").decode()
    return " ".join("".join(one if one.isprintable() else " " for one in text).split()) or None


def load_json(body: bytes, metadata: ModelMetadata, settings: Settings) -> Any:
    if len(body) > 1000 + settings.max_images * math.prod(metadata.shape) * JSON_BYTES_PER_PIXEL:
        raise RequestError(413, f"the JSON is larger than {settings.max_images} images can be")
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    try:  # slower, but takes NaN, so that the error can name the image that has it
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None


def may_hold_booleans(body: bytes) -> bool:
    return b"true" in body or b"false" in body


def parse_json(body: bytes, metadata: ModelMetadata, settings: Settings) -> Pixels:
    content = load_json(body, metadata, settings)
    if not isinstance(content, dict) or set(content) != {FIELD} or not isinstance(content[FIELD], list):
        raise RequestError(422, f'the JSON must be an object with one key, "{FIELD}", that holds a list')
    images = content[FIELD]
    check_count(len(images), settings)
    shape = metadata.shape if metadata.channels > 1 else metadata.shape[1:]
    is_mixed = may_hold_booleans(body)
    pixels = b"".join([parse_pixels(image, shape, f"image {index}", is_mixed) for index, image in enumerate(images)])
    return np.frombuffer(pixels, np.uint8).reshape(-1, *metadata.shape)


def parse_pixels(image: Any, shape: tuple[int, ...], name: str, is_mixed: bool) -> bytes:
    """Lists of integers, nested exactly as the shape says.

    Args:
        is_mixed: whether there may be booleans, which bytes() takes for integers. To look at the type of each value
            takes longer than all the rest.
    """
    values = [image]
    for side in shape:
        for row in values:
            if not isinstance(row, list) or len(row) != side:
                raise RequestError(422, f"{name} is not {' x '.join(map(str, shape))} nested lists of numbers")
        values = list(chain.from_iterable(values))
    try:
        try:
            return bytes(check_types(values, name) if is_mixed else values)
        except TypeError:
            return bytes(check_types(values, name))
    except (ValueError, OverflowError):
        raise RequestError(422, f"{name} has pixels that are not integers from 0 to 255") from None


def check_types(values: list[Any], name: str) -> list[int]:
    """Integers that are written as floats, such as 1.0, as integers; ValueError for other floats."""
    if not set(map(type, values)) <= {int, float}:
        raise RequestError(422, f"{name} contains values that are not numbers")
    if any(value % 1 for value in values):  # the remainder of NaN and of infinity is NaN
        raise ValueError
    return list(map(int, values))
