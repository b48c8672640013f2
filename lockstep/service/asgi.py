"""A request, its response and its errors, read from and sent through ASGI without a framework's layers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

CLOSE, RETRY = ((b"connection", b"close"),), ((b"retry-after", b"1"),)
ERROR_HEADERS = {408: CLOSE, 413: CLOSE, 503: RETRY}
Headers = tuple[tuple[bytes, bytes], ...]


class Response(NamedTuple):
    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Headers = ()

    async def send(self, send: Send) -> None:
        length = str(len(self.body)).encode()
        headers = [(b"content-type", self.content_type), (b"content-length", length), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(content: Any, status: int = 200, headers: Headers = ()) -> Response:
    return Response(orjson.dumps(content), status, headers=headers)


class RequestError(Exception):
    """Answered with the status, its headers, and the message as `error`."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or ERROR_HEADERS.get(status, ())

    def to_response(self) -> Response:
        return json_response({"error": str(self)}, self.status, self.headers)


@dataclass(slots=True)
class Request:
    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes] = field(init=False)  # names in lower case

    def __post_init__(self) -> None:
        self.headers = dict(self.scope["headers"])

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    def read_flags(self, *names: str) -> list[bool]:
        """The query parameters of these names, which are true or false; there may be no other."""
        query = self.scope["query_string"]
        values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}
        for name, value in values.items():
            if name not in names:
                raise RequestError(422, f"there is no query parameter {name!r:.40}, only {' and '.join(names)}")
            if value.lower() not in ("true", "false"):
                raise RequestError(422, f"query parameter {name} is {value!r:.40}, not true or false")
        return [values.get(name, "").lower() == "true" for name in names]

    async def read_body(self, max_bytes: int, seconds: float, reserve: Callable[[int], None]) -> bytes:
        """A body that is too large is read and discarded: a client that is cut off would not see the answer."""
        if (encoding := self.header(b"content-encoding").strip().lower()) not in ("", "identity"):
            raise RequestError(415, f"content encoding {encoding!r:.40}: send the body as it is")
        length = self.headers.get(b"content-length", b"").lstrip(b"0")
        is_too_large = length.isdigit() and (len(length) > 18 or int(length) > max_bytes)
        if is_too_large and b"expect" in self.headers:  # the client waits for a word before it sends the body
            raise RequestError(413, f"the request is larger than {max_bytes:,} bytes")
        body, has_more = bytearray(), True
        try:
            async with asyncio.timeout(seconds):
                while has_more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the client disconnected")
                    chunk, has_more = message.get("body", b""), message.get("more_body", False)
                    is_too_large = is_too_large or len(body) + len(chunk) > max_bytes
                    if not is_too_large:
                        reserve(len(chunk))
                        body += chunk
        except TimeoutError:
            if not is_too_large:
                raise RequestError(408, f"the request did not arrive within {seconds:g} seconds") from None
        if is_too_large:
            raise RequestError(413, f"the request is larger than {max_bytes:,} bytes")
        return bytes(body)
