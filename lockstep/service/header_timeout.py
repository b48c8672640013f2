"""uvicorn's HTTP protocol with a time limit for a request's headers: uvicorn itself waits for them forever."""

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class HeaderTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    seconds = 10.0
    timer: TimerHandle | None = None

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self.start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_answering:
            self.cancel_timer()
        elif self.timer is None:
            self.start_timer()

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
