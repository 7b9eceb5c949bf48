"""The settings of tracing: where spans go, and of how many traces."""

from __future__ import annotations

from pydantic import Field, field_validator

from streamer.settings.section import Section


class TracingSettings(Section):
    """OpenTelemetry (docs/tracing.md). Without an endpoint nothing is traced; the ``OTEL_…`` variables of its specification count
    where a setting is absent.
    """

    endpoint: str = Field(
        "",
        description="an OTLP receiver that speaks HTTP, such as http://collector:4318; absent: OTEL_EXPORTER_OTLP_ENDPOINT, and "
        "without that no spans are made",
    )
    ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the traces that begin here which are recorded; of others, whoever began them decides. Absent: "
        "OTEL_TRACES_SAMPLER_ARG, or all",
    )

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"{endpoint!r} is no address of an OTLP receiver: it begins with http:// or https:// (gRPC is not spoken)"
            )
        return endpoint
