"""The Prometheus metrics that all processes share, each labelled with its process; a process' own are in its own room.

What must hold: base units (seconds, bytes, ratios of 1), few labels, and bounded values of each: no item, query or message ever
names a series. A batch costs a handful of observations, whatever its size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from confluent_kafka import Message
from prometheus_client import Counter, Gauge, Histogram

from streamer.process.health import Health
from streamer.tracing.context import context_of

_BATCH_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_AGE_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1_800)
_MOST_TIMED: Final = 32
_MOST_CLASSES: Final = 32

EVENTS: Final = Counter("sidstream_events", "Events processed: committed, or seen by the monitor", ["process"])
BATCH_SECONDS: Final = Histogram(
    "sidstream_batch_seconds", "Seconds from a batch's first event to its commit", ["process"], buckets=_BATCH_SECONDS
)
BATCH_EVENTS: Final = Histogram(
    "sidstream_batch_events",
    "Events of a batch",
    ["process"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000),
)
LAG_RECORDS: Final = Gauge(
    "sidstream_lag_records", "Offsets between the end of a topic and what is processed of it", ["process", "topic"]
)
FRESHNESS_SECONDS: Final = Histogram(
    "sidstream_freshness_seconds",
    "Seconds from the Kafka timestamp of an item's update to the commit of its codes (assigner) or in the index (indexer)",
    ["process"],
    buckets=_AGE_SECONDS,
)
DEAD_LETTERS: Final = Counter(
    "sidstream_dead_letters",
    "Events sent to dead letters; those of a batch that is aborted and done again count again",
    ["process", "class"],
)
TRANSACTION_ABORTS: Final = Counter(
    "sidstream_transaction_aborts",
    "Kafka transactions that were aborted; their events were processed again",
    ["process"],
)
LAYOUT_GENERATION: Final = Gauge(
    "sidstream_layout_generation",
    "Generation of the newest layout that the process issued (monitor), stored (indexer) or read with (retriever)",
    ["process"],
)
_READY: Final = Gauge("sidstream_ready", "1 when the process is ready, else 0; /ready tells the reason", ["process"])
_LIVE: Final = Gauge(
    "sidstream_live", "1 when the loop of the process turns, else 0; /live tells the reason", ["process"]
)
_BUILD: Final = Gauge("sidstream_build_info", "1, labelled with the version that runs", ["process", "version"])

_classes: set[str] = set()


def describe_process(process: str, health: Health) -> None:
    """Version, readiness and liveness of this process; asked anew at every scrape."""
    try:
        number = version("sidstream")
    except PackageNotFoundError:
        number = "unknown"
    _BUILD.labels(process, number).set(1)
    _READY.labels(process).set_function(lambda: float(health.ready))
    _LIVE.labels(process).set_function(lambda: float(health.stalled is None))


def bounded_class(kind: str) -> str:
    """``kind``, or ``Other`` when there are more than 32 of them: a label must not grow with what comes in."""
    if kind not in _classes:
        if len(_classes) >= _MOST_CLASSES:
            return "Other"
        _classes.add(kind)
    return kind


def count_dead_letter(process: str, kind: str) -> None:
    """``kind``: the error's class, as in the header ``dlq.errors.class``."""
    DEAD_LETTERS.labels(process, bounded_class(kind)).inc()


def observe_ages(histogram: Histogram, records: Sequence[Message], traced: Message | None = None) -> None:
    """Seconds from the Kafka timestamps of ``records`` until now; at most 32 of them, spread evenly over the batch, and
    ``traced`` among them. Of those whose trace is recorded, its id is the exemplar.

    A timestamp comes from the producer's clock, and so does a negative age, which counts as none.
    """
    now, step = time.time(), len(records) // _MOST_TIMED + 1
    first = 0 if traced is None else next(place for place, one in enumerate(records) if one is traced) % step
    for record in records[first::step]:
        kind, milliseconds = record.timestamp()
        if kind:  # else the record has none
            context = context_of(record)
            exemplar = {"trace_id": context.trace_id} if context is not None and context.sampled else None
            histogram.observe(max(0.0, now - milliseconds / 1000), exemplar)
