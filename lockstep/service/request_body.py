"""Reads the images in the body of a request, within limits of size and time."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lockstep.metadata import ModelMetadata
from lockstep.preparation import Pixels
from lockstep.service.settings import Settings

FIELD = "images"  # of a form and of JSON
JSON_BYTES_PER_PIXEL = 16  # at most; parsing more would delay all other requests
MAX_FLOAT = 1e300  # JSON allows integers that float64 cannot hold
HEADERS = {408: {"connection": "close"}, 413: {"connection": "close"}, 503: {"retry-after": "1"}}


class RequestError(HTTPException):
    """Answered with the status, its headers, and the message as `error`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message, HEADERS.get(status))


class Capacity:
    """An amount of bytes or images that all requests share while they are answered."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def reservation(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves an amount until the end of the block, or answers with 503."""
        reserved = 0

        def reserve(amount: int) -> None:
            nonlocal reserved
            if self.used + amount > self.limit:
                raise RequestError(503, "too busy; try again in a second")
            self.used += amount
            reserved += amount

        try:
            yield reserve
        finally:
            self.used -= reserved


@dataclass(frozen=True)
class RequestImage:
    name: str | None  # of the file, in a form
    content: bytes | Pixels  # the bytes of an image file, or the network's input


async def read_body(request: Request, settings: Settings, reserve: Callable[[int], None]) -> bytes:
    """A body that is too large is read and discarded: a client that is cut off would not see the answer."""
    length = request.headers.get("content-length", "")
    is_too_large = length.isdigit() and int(length) > settings.max_bytes
    body = bytearray()
    try:
        async with asyncio.timeout(settings.request_timeout):
            async for chunk in request.stream():
                is_too_large = is_too_large or len(body) + len(chunk) > settings.max_bytes
                if not is_too_large:
                    reserve(len(chunk))
                    body += chunk
    except TimeoutError:
        if not is_too_large:
            raise RequestError(408, f"the request did not arrive within {settings.request_timeout:g} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the client disconnected") from None
    if is_too_large:
        raise RequestError(413, f"the request is larger than {settings.max_bytes:,} bytes")
    return bytes(body)


async def parse_images(
    request: Request, body: bytes, metadata: ModelMetadata, settings: Settings
) -> list[RequestImage]:
    """By content type: the bytes of an image file, a form of image files, or pixels as JSON."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "application/json":
        images = parse_json(body, metadata, settings)
    elif content_type == "multipart/form-data":
        images = await parse_form(request, body, settings)
    elif content_type.startswith("image/") or content_type == "application/octet-stream":
        images = [RequestImage(None, body)]
    else:
        raise RequestError(
            415,
            f"content type {content_type or 'missing'}; supported: image/*, application/octet-stream, "
            "multipart/form-data, application/json",
        )
    if not images:
        raise RequestError(422, "the request contains no image")
    if len(images) > settings.max_images:
        raise too_many_images(settings)
    return images


def too_many_images(settings: Settings) -> RequestError:
    return RequestError(413, f"the request contains more than {settings.max_images} images")


async def parse_form(request: Request, body: bytes, settings: Settings) -> list[RequestImage]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "not a valid form: its content type names no boundary")
    if b"--" + boundary + b"--" not in body[-len(boundary) - 1000 :]:
        raise RequestError(400, "not a valid form: it is cut off before its end")
    parser = MultiPartParser(
        request.headers, stream(), max_files=settings.max_images + 1, max_fields=1, max_part_size=settings.max_bytes
    )
    parser.spool_max_size = settings.max_bytes + 1  # keeps files in memory, where the body is already
    try:  # in a thread: a form of many small parts takes seconds
        form = await asyncio.to_thread(asyncio.run, parser.parse())
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many_images(settings) from None
        raise RequestError(400, f"not a valid form: {error.message}") from None
    except Exception:  # the parser raises errors of many types for broken bytes
        raise RequestError(400, "not a valid form") from None
    images = []
    for name, file in form.multi_items():
        if name != FIELD or not isinstance(file, UploadFile):
            raise RequestError(422, f"the form has a part {name!r} that is not a file named {FIELD!r}")
        images.append(RequestImage(clean_file_name(file.filename), await file.read()))
        await file.close()
    return images


def clean_file_name(name: str | None) -> str | None:
    """On one line, and without characters that UTF-8 cannot encode."""
    return " ".join((name or "").encode("utf-8", "replace").decode().split()) or None


def parse_json(body: bytes, metadata: ModelMetadata, settings: Settings) -> list[RequestImage]:
    if len(body) > 1000 + settings.max_images * math.prod(metadata.shape) * JSON_BYTES_PER_PIXEL:
        raise RequestError(413, f"the JSON is larger than {settings.max_images} images can be")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(content, dict) or set(content) != {FIELD} or not isinstance(content[FIELD], list):
        raise RequestError(422, f'the JSON must be an object with one key, "{FIELD}", that holds a list')
    if len(content[FIELD]) > settings.max_images:
        raise too_many_images(settings)
    shape = metadata.shape if metadata.channels > 1 else metadata.shape[1:]
    return [
        RequestImage(None, parse_pixels(image, shape, index).reshape(metadata.shape))
        for index, image in enumerate(content[FIELD])
    ]


def parse_pixels(image: Any, shape: tuple[int, ...], index: int) -> Pixels:
    """Lists of integers, nested exactly as the shape says."""
    values = [image]
    for side in shape:
        if not all(isinstance(row, list) and len(row) == side for row in values):
            raise RequestError(422, f"image {index} is not {' x '.join(map(str, shape))} nested lists of numbers")
        values = list(chain.from_iterable(values))
    if not set(map(type, values)) <= {int, float}:
        raise RequestError(422, f"image {index} contains values that are not numbers")
    numbers = (
        np.array(values, np.float64) if -MAX_FLOAT < min(values) <= max(values) < MAX_FLOAT else np.full(1, np.inf)
    )
    if not (numbers.min() >= 0 and numbers.max() <= 255 and (numbers == np.rint(numbers)).all()):
        raise RequestError(422, f"image {index} has pixels that are not integers from 0 to 255")
    return numbers.astype(np.uint8)
