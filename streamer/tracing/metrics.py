"""What is counted of spans."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

SPANS: Final = Counter("sidstream_spans", "Spans that the collector has taken")
SPANS_DROPPED: Final = Counter(
    "sidstream_spans_dropped",
    "Spans that were dropped: not_taken by the collector, or queue_full meanwhile",
    ["reason"],
)
