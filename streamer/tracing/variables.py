"""OpenTelemetry's own variables, read where nothing of it is imported."""

from __future__ import annotations

import os
from typing import Final

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def variable(*names: str) -> str:
    """The first of these that is set; empty if none is."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")
