"""The retriever's own metrics: what became of queries, how long they took from end to end, and how long the model did."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Histogram

QUERIES: Final = Counter(
    "sidstream_queries",
    "Queries by what became of them: answered, or the kind of their error; those of an aborted batch count again",
    ["outcome"],
)
QUERY_SECONDS: Final = Histogram(
    "sidstream_query_seconds",
    "Seconds from the Kafka timestamp of a query to the commit of its answer",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60),
)
DECODE_SECONDS: Final = Histogram(
    "sidstream_decode_seconds",
    "Seconds of one beam search over a batch of queries",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)

ANSWERED: Final = "answered"
