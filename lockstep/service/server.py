"""Listens at an address, and answers with uvicorn."""

import contextlib
import socket

import uvicorn

from lockstep.errors import LockstepError
from lockstep.service.app import Service
from lockstep.service.header_timeout import make_protocol


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise LockstepError(f"cannot listen at {host}:{port}: {reason}; choose another --port or --host") from None
    # asyncio sets TCP_NODELAY only on sockets that name their protocol.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener.detach())


def serve(app: Service, listener: socket.socket, max_connections: int) -> None:
    """Until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(
        app,
        http=make_protocol(app.settings.request_timeout),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing asks for the client's address
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=10,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
