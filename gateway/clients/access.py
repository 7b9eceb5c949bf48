"""Whether a request is let in: who asks, whether that client may, and whether it is too much now.

A client is who has a key of the file, or a certificate that the settings' CA has signed; with neither of them in the settings, an
address. What must hold: a page of another site that a person on this machine looks at can change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from litestar.connection import Request

from gateway.clients.keys import ClientRecord, ClientsFile, Right
from gateway.problems import Problem, too_busy
from streamer.process.rates import TokenBuckets
from streamer.settings.gateway import GatewaySettings, is_loopback

CERTIFICATE_STATE: Final = "client_certificate"
_EVERYTHING: Final = frozenset({"ask", "write"})


class Access:
    """Admits requests. For the event loop alone."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises ``ClientsFileError``."""
        self._settings = settings
        self._file = None if settings.clients is None else ClientsFile(settings.clients)
        self._buckets: dict[tuple[float, int], TokenBuckets] = {}
        self._waiting: Counter[str] = Counter()

    def look(self) -> None:
        """Once a second: the file of clients may have changed."""
        if self._file is not None:
            self._file.look()

    def admit(self, request: Request[Any, Any, Any], right: Right) -> ClientRecord:
        """The client, which may do this now; it costs one of its requests.

        Raises:
            Problem: 401, 403, 421 or 429.
        """
        client = self._who(request)
        if right not in client.rights:
            raise Problem(
                403,
                "NotAllowed",
                f"the client {client.name!r} has not the right {right!r}: whoever keeps gateway.clients adds it to its rights",
            )
        settings = self._settings
        rate = settings.client_requests_per_second if client.requests_per_second is None else client.requests_per_second
        if rate > 0:
            burst = settings.client_request_burst if client.burst is None else client.burst
            buckets = self._buckets.setdefault((rate, burst), TokenBuckets(per_second=rate, burst=burst))
            if (seconds := buckets.take(client.name)) > 0:
                raise Problem(
                    429,
                    "RateLimited",
                    f"the client {client.name!r} sends more than {rate:g} requests a second (bursts of {burst}): send it again "
                    f"in {seconds:.1f} s",
                    again_seconds=seconds,
                )
        return client

    def _who(self, request: Request[Any, Any, Any]) -> ClientRecord:
        if self._settings.tls_client_ca is not None:
            name = request.scope.get("state", {}).get(CERTIFICATE_STATE) or ""
            known = self._file.named(name) if self._file is not None else None
            if self._file is not None and known is None:
                raise Problem(
                    403,
                    "UnknownClient",
                    f"the certificate is of {name[:64]!r}, whom gateway.clients does not name: add it",
                )
            return known or ClientRecord(name=f"certificate {name}", rights=_EVERYTHING)
        if self._file is not None:
            key = _key_of(request)
            found = self._file.of_key(key) if key is not None else None
            if found is None:
                raise Problem(
                    401,
                    "UnknownKey" if key is not None else "NoKey",
                    "no client has this key: look at it, or ask for another one"
                    if key is not None
                    else "send the key of a client as the header 'Authorization: Bearer KEY'",
                    headers={"WWW-Authenticate": 'Bearer realm="sidstream"'},
                )
            return found
        host = request.headers.get("host", "")
        if not self._settings.open and not is_loopback(_without_port(host)):
            # Another site's name that leads here: a page of it would be let in as if it were ours.
            raise Problem(
                421,
                "OtherHost",
                f"this gateway is for its own machine, and the request is for {host[:80]!r}: ask 127.0.0.1",
            )
        return ClientRecord(name=f"address {request.client.host if request.client else ''}", rights=_EVERYTHING)

    @contextmanager
    def waiting(self, client: ClientRecord) -> Iterator[None]:
        """While this client waits for an answer.

        Raises:
            Problem: 429: too many of its requests do.
        """
        most = self._settings.client_waiting
        if self._waiting[client.name] >= most:
            raise too_busy(
                f"{most} requests of the client {client.name!r} wait for answers: send no more before one is answered"
            )
        self._waiting[client.name] += 1
        try:
            yield
        finally:
            self._waiting[client.name] -= 1
            if not self._waiting[client.name]:
                del self._waiting[client.name]


def _key_of(request: Request[Any, Any, Any]) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _without_port(host: str) -> str:
    """Of ``Host``: ``127.0.0.1:8080``, ``[::1]:8080`` or ``localhost``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
