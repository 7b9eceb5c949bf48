"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

PROCESS: Final = "gateway"
REQUESTS: Final = Counter("sidstream_gateway_requests", "Requests answered", ["route", "method", "status"])
SECONDS: Final = Histogram(
    "sidstream_gateway_seconds",
    "Seconds from a request's headers to its answer's last byte",
    ["route", "method"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
LINES: Final = Counter("sidstream_gateway_lines", "Lines of POST /items", ["outcome"])
WAITING_QUERIES: Final = Gauge("sidstream_gateway_waiting_queries", "Queries that have no answer yet")
KEPT_ANSWERS: Final = Gauge("sidstream_gateway_kept_answers", "Late answers that are kept to be fetched")
UNCONFIRMED_WRITES: Final = Gauge(
    "sidstream_gateway_unconfirmed_writes", "Writes that the broker has not confirmed yet"
)
