"""The body of a request -> pictures and pixels, read within limits of size and time."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from itertools import chain
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lockstep.metadata import ModelMetadata
from lockstep.preparation import Pixels
from lockstep.service.batching import Busy

FIELD = "images"  # of a form and of JSON
DIGITS = 16  # bytes that a pixel of JSON may take; a reader of more would hold up all others
LARGE = 1e300  # JSON knows whole numbers that no float64 holds


class RequestError(Exception):
    """With an HTTP status and a line for whoever sent it."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True)
class Limits:
    body: int = 16_000_000  # bytes of a request
    bodies: int = 256_000_000  # bytes of all requests at once
    images: int = 64  # of a request
    seconds: float = 10.0  # for a request to arrive


class Budget:
    """Bytes that all requests hold together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    @contextmanager
    def room(self) -> Iterator["Share"]:
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held


@dataclass
class Share:
    budget: Budget
    held: int = 0

    def grow(self, count: int) -> None:
        if self.budget.held + count > self.budget.limit:
            raise Busy
        self.budget.held += count
        self.held += count


@dataclass(frozen=True)
class RequestImage:
    """One image of a request: a file's bytes, or pixels as the network takes them."""

    name: str | None
    content: bytes | Pixels


async def read(request: Request, limits: Limits, share: Share) -> bytes:
    """All of it. What is too large is read to its end and thrown away: a sender cut off would not see the answer."""
    length = request.headers.get("content-length", "")
    large = length.isdigit() and int(length) > limits.body
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                large = large or share.held + len(part) > limits.body
                if large:
                    parts.clear()
                else:
                    share.grow(len(part))
                    parts.append(part)
    except TimeoutError:
        if not large:
            raise RequestError(408, f"the request did not arrive within {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the request was cut off") from None
    if large:
        raise RequestError(413, f"the request is larger than {limits.body:,} bytes")
    return b"".join(parts)


async def images(request: Request, body: bytes, facts: ModelMetadata, limits: Limits) -> list[RequestImage]:
    """By the content type: a picture's bytes, a form of pictures, or pixels as JSON."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        found = from_json(body, facts, limits)
    elif kind == "multipart/form-data":
        found = await from_form(request, body, limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        found = [RequestImage(None, body)]
    else:
        raise RequestError(
            415,
            f"content type {kind or 'missing'}: image/*, application/octet-stream, multipart/form-data or "
            "application/json is taken",
        )
    if not found:
        raise RequestError(422, "there is no image in the request")
    return found


async def from_form(request: Request, body: bytes, limits: Limits) -> list[RequestImage]:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield body

    declared = Message()
    declared["content-type"] = request.headers["content-type"]
    boundary = declared.get_boundary()
    if not boundary:
        raise RequestError(400, "the form is not understood: its content type names no boundary")
    if b"--" + boundary.encode("latin-1", "replace") + b"--" not in body[-len(boundary) - 1000 :]:
        raise RequestError(400, "the form is cut off before its end")
    parser = MultiPartParser(
        request.headers, parts(), max_files=limits.images + 1, max_fields=1, max_part_size=limits.body
    )
    parser.spool_max_size = limits.body + 1  # in memory: it is there already
    try:  # in another thread: a form of many small parts takes seconds
        form = await asyncio.to_thread(asyncio.run, parser.parse())
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many files") else 400
        said = too_many(limits) if status == 413 else f"the form is not understood: {error.message}"
        raise RequestError(status, said) from None
    except Exception:  # the parser below raises what it likes at bytes that are broken
        raise RequestError(400, "the form is not understood") from None
    found = []
    for name, file in form.multi_items():
        if name != FIELD or not isinstance(file, UploadFile):
            raise RequestError(422, f"the form has a part {name!r} that is no file named {FIELD!r}")
        found.append(RequestImage(clean(file.filename), await file.read()))
        await file.close()
    if len(found) > limits.images:
        raise RequestError(413, too_many(limits))
    return found


def from_json(body: bytes, facts: ModelMetadata, limits: Limits) -> list[RequestImage]:
    if len(body) > 1000 + limits.images * math.prod(facts.shape) * DIGITS:
        raise RequestError(413, f"more JSON than {limits.images} images of this size take")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(content, dict) or set(content) != {FIELD} or not isinstance(content[FIELD], list):
        raise RequestError(422, f'an object with a list "{FIELD}" alone is wanted')
    if len(content[FIELD]) > limits.images:
        raise RequestError(413, too_many(limits))
    shape = facts.shape if facts.channels > 1 else facts.shape[1:]
    return [
        RequestImage(None, pixels(image, shape, index).reshape(facts.shape))
        for index, image in enumerate(content[FIELD])
    ]


def pixels(image: Any, shape: tuple[int, ...], index: int) -> Pixels:
    """Nested lists of whole numbers, exactly as deep and as long."""
    rows = [image]
    for side in shape:
        if not all(isinstance(row, list) and len(row) == side for row in rows):
            raise RequestError(422, f"image {index} is not {' x '.join(map(str, shape))} nested lists of numbers")
        rows = list(chain.from_iterable(rows))
    if not set(map(type, rows)) <= {int, float}:
        raise RequestError(422, f"image {index} holds what is no number")
    numbers = np.array(rows, np.float64) if -LARGE < min(rows) <= max(rows) < LARGE else np.full(1, np.inf)
    if not (numbers.min() >= 0 and numbers.max() <= 255 and (numbers == np.rint(numbers)).all()):
        raise RequestError(422, f"image {index} has pixels that are not whole numbers of 0 to 255")
    return numbers.astype(np.uint8)


def clean(name: str | None) -> str | None:
    """A file's name, on one line and without what no UTF-8 says."""
    return " ".join((name or "").encode("utf-8", "replace").decode().split()) or None


def too_many(limits: Limits) -> str:
    return f"more than {limits.images} images in a request"
