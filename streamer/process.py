"""What every long-running process shares: logging, health over HTTP, signals, and an end when its supervisor has died."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

import structlog

from streamer.logs import configure_logging
from streamer.metrics import Health, HealthServer
from streamer.settings import Settings

log = structlog.get_logger(__name__)

# The process id of a supervisor; a child that finds itself adopted by another process ends as on SIGTERM.
SUPERVISOR_VARIABLE: Final = "SIDSTREAM_SUPERVISOR_PID"
_WATCH_SECONDS: Final = 1.0


def run_process(name: str, settings: Settings, work: Callable[[threading.Event, Health], None]) -> None:
    """Run ``work(stop, health)`` until it returns; SIGTERM and SIGINT set ``stop``, so that it can finish its batch."""
    configure_logging(settings.logging, process=name)
    stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if supervisor := os.environ.get(SUPERVISOR_VARIABLE):
        threading.Thread(target=_watch, args=(int(supervisor), stop), name="supervisor-watch", daemon=True).start()
    health = Health()
    server = HealthServer(settings.metrics, health)
    log.info("starting", broker=settings.kafka.bootstrap_servers)
    try:
        work(stop, health)
    finally:
        server.close()
    log.info("stopped")


def collect_garbage_rarely() -> None:
    """For a process of large batches, once it is set up: what lives now is never scanned again, what comes rarely.

    A batch makes tens of thousands of objects and not one cycle; the default looks for cycles every 700 of them,
    which cost 3-11 % of the assigner's processor time and 16 % of the indexer's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _watch(supervisor: int, stop: threading.Event) -> None:
    """A supervisor that was killed cannot end its children."""
    while not stop.wait(_WATCH_SECONDS):
        if os.getppid() != supervisor:
            log.warning("stopping", reason="the supervisor has died")
            stop.set()
