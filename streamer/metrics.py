"""Health and Prometheus metrics of one process over HTTP: ``/metrics``, ``/live`` and ``/ready``.

Ready means: the work is running, its loop turns, and the broker answered last time it was asked.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from models.errors import SidstreamError
from streamer.settings import MetricsSettings
from streamer.web import HEADERS

# A loop turns in a tenth of a second when idle; a call that has blocked for this long is stuck.
STALLED_SECONDS: Final = 15.0

EVENTS: Final = Counter("sidstream_events", "Events consumed", ["process"])
DEAD_LETTERS: Final = Counter("sidstream_dead_letters", "Events sent to dead letters", ["process", "stage"])
BATCH_SECONDS: Final = Histogram(
    "sidstream_batch_seconds",
    "Seconds from a batch's first event to its commit",
    ["process"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
ITEMS: Final = Gauge("sidstream_index_items", "Live items in the index")


class Health:
    """Whether a process is ready, and why not. Thread-safe: a flag is set by one thread and read by another."""

    def __init__(self) -> None:
        self._reason: str | None = "starting"
        self._progress_at: float | None = None

    @property
    def ready(self) -> bool:
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why the process is not ready; ``None`` when it is."""
        if self._reason is None and self._progress_at is not None:
            silent = time.monotonic() - self._progress_at
            if silent > STALLED_SECONDS:
                return f"no progress for {silent:.0f} s"
        return self._reason

    def progress(self) -> None:
        """The work goes on; a loop that calls this once must go on calling it, with or without anything to do."""
        self._progress_at = time.monotonic()

    def set_ready(self) -> None:
        self._reason = None

    def set_unready(self, reason: str) -> None:
        self._reason = reason


class HealthServer:
    """Serves metrics and health until closed; port 0 in the settings means that nothing listens."""

    def __init__(self, settings: MetricsSettings, health: Health) -> None:
        self._server: ThreadingHTTPServer | None = None
        if settings.port == 0:
            return

        class Handler(BaseHTTPRequestHandler):
            server_version, sys_version = "sidstream", ""

            def do_GET(self) -> None:
                status, kind, body = _respond(self.path, health)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """A probe every few seconds is no news."""

        try:
            self._server = ThreadingHTTPServer((settings.host, settings.port), Handler)
        except OSError as error:
            raise SidstreamError(
                f"cannot serve metrics on {settings.host}:{settings.port} ({error.strerror}): "
                "choose another metrics.port, or 0 to switch it off"
            ) from None
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _respond(path: str, health: Health) -> tuple[int, str, bytes]:
    match path.partition("?")[0]:
        case "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest()
        case "/live":
            return 200, "text/plain", b"alive\n"
        case "/ready":
            return (
                (200, "text/plain", b"ready\n") if health.ready else (503, "text/plain", f"{health.reason}\n".encode())
            )
        case _:
            return 404, "text/plain", b"try /metrics, /live or /ready\n"
