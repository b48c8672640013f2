"""uvicorn's HTTP protocol, with a limit on how long a request's headers may take to arrive."""

from asyncio import Transport
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class HeaderTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn itself waits for ever for the rest of a request's headers."""

    seconds = 10.0
    waiting: Any = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self.limit()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.unlimit()
        elif self.waiting is None:
            self.limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self.unlimit()
        super().connection_lost(exc)

    def limit(self) -> None:
        self.waiting = self.loop.call_later(self.seconds, self.expire)

    def unlimit(self) -> None:
        if self.waiting:
            self.waiting.cancel()
        self.waiting = None

    def expire(self) -> None:
        self.waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def patient(seconds: float) -> type[HeaderTimeoutProtocol]:
    return type("Patient", (HeaderTimeoutProtocol,), {"seconds": seconds})
