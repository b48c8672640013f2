"""Checks the Host and Origin headers of a request: whether a page of another site may have sent it."""

from lockstep.service.asgi import Request, RequestError
from lockstep.service.settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")  # asked by address, and they tell nothing


class HostCheck:
    def __init__(self, settings: Settings) -> None:
        self.allowed = frozenset(map(normalize_host, settings.allowed_hosts))
        self.hosts = None if settings.hosts is None else {*LOOPBACK, *map(normalize_host, settings.hosts)}

    def check(self, request: Request) -> None:
        """RequestError unless the request is for one of the hosts and, if it is a POST of a page, from the same one.

        A page of another site could otherwise read the answers through a name that it has made an alias of this
        machine (DNS rebinding), or make the service work.
        """
        host = request.header(b"host")
        if request.scope["path"] in PROBES:
            return
        if self.hosts is not None and normalize_host(host) not in self.hosts:
            raise refuse(f"the request is for the host {host!r:.80}", host)
        origin = request.headers.get(b"origin")
        if origin is None or request.scope["method"] in ("GET", "HEAD"):
            return
        source = origin.decode("latin-1").rpartition("://")[2]
        if source.lower() != host.lower() and normalize_host(source) not in self.allowed:
            raise refuse(f"a page of {source!r:.80} sent the request to {host!r:.80}", source)


def refuse(reason: str, host: str) -> RequestError:
    name = normalize_host(host) or "NAME"
    if name == "null":  # of a sandboxed frame on any page
        return RequestError(403, f"{reason}, which is not allowed")
    return RequestError(403, f"{reason}, which is not allowed; start the service with --allow-host {name:.80} if it is")


def normalize_host(host: str) -> str:
    """Without the port, in lower case; an IPv6 address stays in its brackets."""
    name, separator, port = host.rpartition(":")
    return (name if separator and not port.endswith("]") else host).lower().rstrip(".")
