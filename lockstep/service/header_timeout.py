"""uvicorn's HTTP protocol with limits of the time and size of a request's headers, which uvicorn itself has not."""

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 65_536


class HeaderTimeoutProtocol(HttpToolsProtocol):
    seconds = 10.0
    timer: TimerHandle | None = None
    header_bytes = 0  # that have come since the application was last given something: headers, or a body's trailers

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.start_timer()

    def data_received(self, data: bytes) -> None:
        self.header_bytes += len(data)
        super().data_received(data)
        if self.header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("Headers are too large.")
        if self.is_answering:
            self.cancel_timer()
        elif self.timer is None:
            self.start_timer()

    def on_headers_complete(self) -> None:
        self.header_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.header_bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.cancel_timer()
        super().connection_lost(exc)

    def start_timer(self) -> None:
        self.timer = self.loop.call_later(self.seconds, self.close_unless_answering)

    def cancel_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = None

    def close_unless_answering(self) -> None:
        self.timer = None
        if not self.is_answering:
            self.transport.close()


def make_protocol(seconds: float) -> type[HeaderTimeoutProtocol]:
    return type("HeaderTimeoutProtocol", (HeaderTimeoutProtocol,), {"seconds": seconds})
