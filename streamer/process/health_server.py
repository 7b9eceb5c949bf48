"""``/metrics``, ``/live`` and ``/ready`` of a process over HTTP; ``/metrics`` in OpenMetrics for whoever accepts that."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from streamer.process.health import Health
from streamer.process.http_headers import HEADERS
from streamer.process.ports import refusing_a_taken_port
from streamer.settings.process import MetricsSettings

_REQUEST_SECONDS: Final = 10.0  # a client that connects and says nothing keeps a thread for this long


class HealthServer:
    """Serves metrics and health until closed; port 0 in the settings means that nothing listens."""

    def __init__(self, settings: MetricsSettings, health: Health) -> None:
        self._server: ThreadingHTTPServer | None = None
        if settings.port == 0:
            return

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_SECONDS
            server_version, sys_version = "sidstream", ""

            def do_GET(self) -> None:
                status, kind, body = _respond(self.path, self.headers.get("Accept", ""), health)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """A probe every few seconds is no news."""

        host, port = settings.host, settings.port
        with refusing_a_taken_port(host, port, setting="metrics.port", purpose="the metrics of this process"):
            self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def exposition(accept: str) -> tuple[str, bytes]:
    """Media type and text of all metrics: OpenMetrics, which has exemplars, for whoever accepts it, else Prometheus' own."""
    encode, kind = choose_encoder(accept)
    return kind, encode(REGISTRY)


def _respond(path: str, accept: str, health: Health) -> tuple[int, str, bytes]:
    match path.partition("?")[0]:
        case "/metrics":
            return 200, *exposition(accept)
        case "/live":
            return _verdict("alive", health.stalled)
        case "/ready":
            return _verdict("ready", health.reason)
        case _:
            return 404, "text/plain", b"try /metrics, /live or /ready\n"


def _verdict(well: str, reason: str | None) -> tuple[int, str, bytes]:
    return (200 if reason is None else 503), "text/plain; charset=utf-8", f"{reason or well}\n".encode()
