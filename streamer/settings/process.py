"""The settings that every process has: its log lines, and where it tells metrics and health."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamer.settings.section import Section


class LoggingSettings(Section):
    """One configuration for our log lines and the libraries'."""

    format: Literal["console", "json"] = Field("console", description="json: a JSON object a line")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is told")


class MetricsSettings(Section):
    """Prometheus metrics and health over HTTP: ``/metrics``, ``/live``, ``/ready``. Port 0 switches the server off."""

    host: str = Field("127.0.0.1", description="where each process listens")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="0 switches it off; of `sidstream up`'s first process, the others have the next ones",
    )
    stalled_seconds: float = Field(30.0, gt=0, description="/live fails when the loop has not turned for so long")
    slow_seconds: float = Field(
        300.0,
        gt=0,
        description="or when a call that may take long (the start, a batch's decoding, a commit) took longer",
    )
