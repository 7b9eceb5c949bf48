"""What every long-running process shares: logging, health over HTTP, signals, and an end when its supervisor has died."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from streamer.process.health import Health
from streamer.process.health_server import HealthServer
from streamer.process.logs import configure_logging
from streamer.process.metrics import describe_process
from streamer.process.shutdown import Shutdown
from streamer.settings import Settings
from streamer.tracing.start import tracing_started

log = structlog.get_logger(__name__)

# The process id of a supervisor; a child that finds itself adopted by another process ends as on SIGTERM.
SUPERVISOR_VARIABLE: Final = "SIDSTREAM_SUPERVISOR_PID"
_WATCH_SECONDS: Final = 1.0


def run_process(
    name: str, settings: Settings, work: Callable[[threading.Event, Health], None], *, instance: str = ""
) -> None:
    """Run ``work(stop, health)`` until it returns. ``instance``: of those of its kind, for the log.

    SIGTERM and SIGINT begin the end: not ready; ``stop`` is set, upon which ``work`` finishes or aborts the batch in
    hand, sends what it still has to tell and closes its store; the HTTP server goes last. After ``shutdown_seconds``, or
    on a second signal, the process ends at once.
    """
    configure_logging(settings.logging, process=name, instance=instance)
    stop, health = threading.Event(), Health(settings.metrics)
    shutdown = Shutdown(stop, deadline_seconds=settings.shutdown_seconds, health=health)
    shutdown.listen()
    threading.excepthook = partial(tell_of_thread, stop)
    if supervisor := os.environ.get(SUPERVISOR_VARIABLE):
        watching = threading.Thread(
            target=_watch, args=(int(supervisor), shutdown), name="supervisor-watch", daemon=True
        )
        watching.start()
    describe_process(name, health)
    server = HealthServer(settings.metrics, health)
    log.info("starting", broker=settings.kafka.bootstrap_servers)
    try:
        with tracing_started(settings, name, instance=instance) as collector:
            if collector:
                log.info("tracing", endpoint=collector)
            work(stop, health)
    finally:
        server.close()
    log.info("stopped")


def tell_of_thread(stop: threading.Event, failed: threading.ExceptHookArgs) -> None:
    """A thread that has failed is told as everything is; in one line while we end, when brokers go away under clients."""
    if failed.exc_type is SystemExit:
        return
    thread = failed.thread.name if failed.thread is not None else "unknown"
    if stop.is_set():
        log.info(
            "thread_failed",
            thread=thread,
            reason=f"{failed.exc_type.__name__}: {failed.exc_value}",
            next="we end anyhow",
        )
    else:
        raised = failed.exc_value or failed.exc_type()
        log.error("thread_failed", thread=thread, exc_info=raised.with_traceback(failed.exc_traceback))


def collect_garbage_rarely() -> None:
    """For a process of large batches, once it is set up: what lives now is never scanned again, what comes rarely.

    A batch makes tens of thousands of objects and not one cycle; the default looks for cycles every 700 of them,
    which cost 3-11 % of the assigner's processor time and 16 % of the indexer's.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # extensions would complain of what is left over at the end
    gc.set_threshold(100_000, 50, 100)


def _watch(supervisor: int, shutdown: Shutdown) -> None:
    """A supervisor that was killed cannot end its children; one that forked us through a server is not our parent."""
    starter = multiprocessing.parent_process()
    while os.getppid() == supervisor and (starter is None or starter.is_alive()):
        time.sleep(_WATCH_SECONDS)
    shutdown.request(reason="the supervisor has died")
