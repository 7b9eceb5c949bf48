"""What every long-running process shares: logging, health over HTTP, signals, and an exit code that a supervisor understands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import structlog

from streamer.logs import configure_logging
from streamer.metrics import Health, HealthServer
from streamer.settings import Settings

log = structlog.get_logger(__name__)


def run_process(name: str, settings: Settings, work: Callable[[threading.Event, Health], None]) -> None:
    """Run ``work(stop, health)`` until it returns; SIGTERM and SIGINT set ``stop``, so that it can finish its batch."""
    configure_logging(settings.logging, process=name)
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    health = Health()
    server = HealthServer(settings.metrics, health)
    log.info("starting", broker=settings.kafka.bootstrap_servers)
    try:
        work(stop, health)
    finally:
        server.close()
    log.info("stopped")
