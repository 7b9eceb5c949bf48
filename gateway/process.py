"""The process: uvicorn in the main thread, threads for Kafka, and an end at which whoever waits is answered.

The end, from SIGTERM on: 1. ``/healthz`` and ``/ready`` say no, and no connection is taken any more. 2. Requests in flight are
answered; those that still wait for an answer when three quarters of ``shutdown_seconds`` have passed get 504 with their query's
id. 3. The threads end, and the clients of Kafka are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.application import application
from gateway.clients.access import CERTIFICATE_STATE
from gateway.gateway import Gateway
from gateway.metrics import PROCESS
from models.errors import SidstreamError
from streamer.kafka.admin import await_topics
from streamer.process.health import Health, Part
from streamer.process.ports import refusing_a_taken_port
from streamer.process.run import run_process
from streamer.settings import Settings
from streamer.settings.gateway import GatewaySettings

log = structlog.get_logger(__name__)
_BACKLOG: Final = 1_024
_IDLE_SECONDS: Final = 30  # a connection without a request is closed
# Of the time to the end: what those who wait for answers have, and what all others have, who wait for the broker.
_WAITERS_SHARE: Final = 0.75
_CANCELLED_SHARE: Final = 0.9
_LOOK_SECONDS: Final = 0.1


class GatewayError(SidstreamError):
    """The gateway cannot serve: its certificates, or a thread of it has failed."""


def run_gateway(settings: Settings) -> None:
    """Serve until SIGTERM."""
    run_process(PROCESS, settings, lambda stop, health: serve(settings, stop, health))


def serve(settings: Settings, stop: threading.Event, health: Health) -> None:
    """Serve until ``stop`` is set.

    Raises:
        SidstreamError: a topic is missing, the file of clients or a certificate cannot be used, the port is taken, or a thread
            has lost the broker for good.
    """
    own, topics = settings.gateway, settings.topics
    needed = [
        topics.queries,
        topics.results,
        topics.item_updates,
        topics.item_updates_dead_letters,
        topics.item_attributes,
        topics.item_attributes_dead_letters,
        topics.drift,
        topics.alerts,
        topics.layouts,
        topics.serving,
    ]
    with _listening(own) as listener:
        if not await_topics(settings, needed, stop, health):
            return
        health.set_ready(Part.BROKER)
        gateway = Gateway(settings, health)
        server = _Server(_configuration(own, gateway, settings.shutdown_seconds), gateway)
        thread = threading.Thread(target=server.run_on, args=(listener,), name="http")
        thread.start()
        # Not the main thread's loop: signals stay with ``Shutdown``.
        while not stop.is_set() and thread.is_alive() and gateway.questions.fault is None:
            if server.started and not health.is_well(Part.START):
                health.set_ready(Part.START)
                log.info("serving", address=own.address)
            stop.wait(_LOOK_SECONDS)
        # Without the thread that reads answers there is nothing to wait for.
        server.end(settings.shutdown_seconds * _WAITERS_SHARE if gateway.questions.fault is None else 0.0)
        thread.join()
    if (fault := server.fault or gateway.questions.fault) is not None:
        raise GatewayError(
            f"the gateway cannot go on: {fault}. Start it again: nothing that was accepted is lost"
        ) from fault


@contextmanager
def _listening(own: GatewaySettings) -> Iterator[socket.socket]:
    """The port, taken before anything else is made. Raises ``PortInUseError``."""
    family = socket.AF_INET6 if ":" in own.host else socket.AF_INET
    taken = refusing_a_taken_port(own.host, own.port, setting="gateway.port", purpose="the gateway", may_be_off=False)
    with taken:
        listener = socket.create_server((own.host, own.port), family=family, backlog=_BACKLOG)
    with listener:
        yield listener


def _configuration(own: GatewaySettings, gateway: Gateway, shutdown_seconds: float) -> uvicorn.Config:
    """Raises ``GatewayError`` for certificates that cannot be used."""
    configuration = uvicorn.Config(
        application(gateway),
        http=_Protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(shutdown_seconds * _CANCELLED_SHARE),
        ssl_certfile=own.tls_certificate,
        ssl_keyfile=own.tls_key,
        ssl_ca_certs=None if own.tls_client_ca is None else str(own.tls_client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if own.tls_client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        configuration.load()
    except (OSError, ssl.SSLError) as error:
        raise GatewayError(
            f"the gateway's certificates cannot be used ({error}): look at gateway.tls_certificate, tls_key and tls_client_ca"
        ) from None
    return configuration


class _Server(uvicorn.Server):
    """Runs in a thread, and ends when it is told to."""

    def __init__(self, configuration: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(configuration)
        self._gateway = gateway
        self.fault: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_on(self, listener: socket.socket) -> None:
        """Until ``end``; ``fault`` is what else has ended it."""
        try:
            with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self.serve(sockets=[listener]))
        except (Exception, SystemExit) as fault:
            self.fault = fault

    def end(self, seconds: float) -> None:
        """From any thread: no more connections, and in so many seconds no more waiting."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return

        def begin() -> None:
            self.should_exit = True
            self._gateway.end_within(seconds)

        with contextlib.suppress(RuntimeError):  # it has closed since
            loop.call_soon_threadsafe(begin)


class _Protocol(HttpToolsProtocol):
    """Tells the routes whose certificate a connection has shown."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        shown: Any = connection.getpeercert() if connection is not None else None
        if shown:
            self.app_state = {**self.app_state, CERTIFICATE_STATE: _name_in(shown)}


def _name_in(certificate: dict[str, Any]) -> str:
    """The common name of its subject; empty without one."""
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return ""
