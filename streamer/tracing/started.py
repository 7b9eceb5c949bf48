"""Whether spans are made in this process, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nothing is imported where nothing is traced
    from opentelemetry.trace import TracerProvider

_provider: TracerProvider | None = None


def own_provider() -> TracerProvider | None:
    """From ``tracing_started`` until its end; not OpenTelemetry's global one, which belongs to the application."""
    return _provider


def is_tracing() -> bool:
    """Whether this process makes spans of its own accord."""
    return _provider is not None


def set_provider(provider: TracerProvider | None) -> None:
    global _provider
    _provider = provider
