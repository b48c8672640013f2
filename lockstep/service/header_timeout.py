"""uvicorn's HTTP protocol with limits that it has not: of the time and size of headers, of pipelined requests, and of
the time that a client may take to read."""

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 65_536
MAX_PIPELINED = 16  # requests of one connection that wait for the answer to the one before


class HeaderTimeoutProtocol(HttpToolsProtocol):
    seconds = 10.0
    timer: TimerHandle | None = None
    abort_timer: TimerHandle | None = None  # runs while the client does not read what was sent
    running: RequestResponseCycle | None = None  # the request that is answered; `cycle` is the last that came
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
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")  # uvicorn answers 400 and closes
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self.header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.header_bytes = 0
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent all of its request may close its side, and is answered."""
        return self.is_answering and not self.cycle.more_body

    def pause_writing(self) -> None:
        super().pause_writing()
        self.start_abort_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.cancel_abort_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.cancel_timer()
        self.cancel_abort_timer()
        if self.running and not self.running.response_complete:  # uvicorn says it to the last request only
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.start_abort_timer()

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
            self.start_abort_timer()

    def start_abort_timer(self) -> None:
        """To close a transport waits until the client has read everything."""
        self.cancel_abort_timer()
        self.abort_timer = self.loop.call_later(self.seconds, self.transport.abort)

    def cancel_abort_timer(self) -> None:
        if self.abort_timer:
            self.abort_timer.cancel()
        self.abort_timer = None


def make_protocol(seconds: float) -> type[HeaderTimeoutProtocol]:
    return type("HeaderTimeoutProtocol", (HeaderTimeoutProtocol,), {"seconds": seconds})
