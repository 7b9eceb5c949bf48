"""One logging configuration: structlog's lines and those of the libraries take the same path and look the same."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from models.terminal import printable
from streamer.settings.process import LoggingSettings
from streamer.tracing.context import current_context

# These libraries tell at "info" what only their developers need.
_QUIETER: Final = {
    "aiokafka": logging.WARNING,
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "jgo": logging.WARNING,
    "uvicorn": logging.WARNING,
}


_chosen_format: str | None = None


def speaks_json() -> bool:
    """Whether this process writes JSON lines to standard error; it then writes no other words there."""
    return _chosen_format == "json"


def configure_logging(settings: LoggingSettings, *, process: str, instance: str = "") -> None:
    """Send every log line of this process to standard error, for a console or as one JSON object a line.

    Each line says which ``process`` wrote it, and which ``instance`` where there may be several, whatever thread it comes from;
    and the ``trace_id`` of what is worked on, where that has one.
    """
    whose = {"process": process} | ({"instance": instance} if instance else {})

    def say_whose(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        context = current_context()
        return {**whose, **event} if context is None else {**whose, "trace_id": context.trace_id, **event}

    shared: list[Processor] = [
        say_whose,  # not a context variable: a thread has a context of its own, without what the main one has bound
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    global _chosen_format
    _chosen_format = settings.format
    rendering: list[Processor]
    if settings.format == "json":
        rendering = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        rendering = [_printable_values, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=32)]

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name, level in _QUIETER.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    logging.captureWarnings(True)


def _printable_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Words of strangers, in a reason or a field's name, cannot reach the terminal's escapes; a traceback keeps its lines."""
    return {
        name: printable(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }
