"""Tracing of a process from its start to its end, if it is configured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import structlog

from models.errors import SidstreamError
from streamer.settings import Settings
from streamer.tracing.started import is_tracing, set_provider
from streamer.tracing.variables import ENDPOINTS, variable

log = structlog.get_logger(__name__)
_CLOSE_SHARE: Final = 0.25  # of shutdown_seconds
_MOST_CLOSE_SECONDS: Final = 2.0


class TracingError(SidstreamError):
    """Tracing is configured, and cannot be."""


@contextmanager
def tracing_started(settings: Settings, process: str, *, instance: str = "") -> Iterator[str]:
    """Spans of this process go to the collector of the settings or of the ``OTEL_…`` variables, to the end of the block; its
    address, empty without one.

    Raises:
        TracingError: an endpoint is set, and OpenTelemetry is not installed.
    """
    own = settings.tracing
    off = variable("OTEL_SDK_DISABLED").lower() == "true" or variable("OTEL_TRACES_EXPORTER") == "none"
    if off or is_tracing() or not (own.endpoint or variable(*ENDPOINTS)):
        yield ""
        return
    try:
        from streamer.tracing.export import Export
    except ImportError as error:
        missing = f"OpenTelemetry is not installed ({error}): pip install 'sidstream[otel]'"
        if own.endpoint:
            raise TracingError(f"tracing.endpoint is set, but {missing}, or unset it") from None
        log.warning("not_traced", reason=missing, next="OTEL_EXPORTER_OTLP_ENDPOINT is not used")
        yield ""
        return
    try:
        number = version("sidstream")
    except PackageNotFoundError:
        number = "unknown"
    export = Export(endpoint=own.endpoint, ratio=own.ratio, process=process, instance=instance, version=number)
    set_provider(export.provider)
    try:
        yield export.endpoint
    finally:
        set_provider(None)
        export.close(min(_MOST_CLOSE_SECONDS, settings.shutdown_seconds * _CLOSE_SHARE))
