"""The retriever's own metrics: what became of queries, how long they took from end to end, how long the model did, and which
bundles answer.

What must hold: the label ``bundle`` has the ids of those that answer now, or are to: a few at the most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

QUERIES: Final = Counter(
    "sidstream_queries",
    "Queries by what became of them: answered, or the kind of their error; those of an aborted batch count again",
    ["outcome", "bundle"],
)
QUERY_SECONDS: Final = Histogram(
    "sidstream_query_seconds",
    "Seconds from the Kafka timestamp of a query to the commit of its answer",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60),
)
DECODE_SECONDS: Final = Histogram(
    "sidstream_decode_seconds",
    "Seconds of one beam search over a batch of queries",
    ["bundle"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
BUNDLES: Final = Gauge(
    "sidstream_bundle_info",
    "1, labelled with a bundle and its role: main and canary answer; awaited: it is to answer and is not loaded yet",
    ["bundle", "role"],
)
CANARY_SHARE: Final = Gauge(
    "sidstream_canary_share_ratio", "Share of the users whom the canary answers in this process; 0 without one"
)
LOAD_FAILURES: Final = Counter(
    "sidstream_bundle_load_failures", "Attempts to load a bundle that failed; the log and /ready tell why"
)

ANSWERED: Final = "answered"


_counted: set[tuple[str, str]] = set()
_shown: dict[str, str] = {}


def count_query(outcome: str, bundle: str) -> None:
    """``outcome``: ``ANSWERED``, or a bounded class of errors; ``bundle``: whose answer it is."""
    _counted.add((outcome, bundle))
    QUERIES.labels(outcome, bundle).inc()


def show_bundles(roles: Mapping[str, str], share: float) -> None:
    """Which bundles answer, or are awaited: id → role; the canary's ``share``. Series of other bundles go."""
    for bundle, role in _shown.items():
        if roles.get(bundle) != role:
            BUNDLES.remove(bundle, role)
        if bundle not in roles:
            DECODE_SECONDS.remove(bundle)
            for counted in [one for one in _counted if one[1] == bundle]:
                QUERIES.remove(*counted)
                _counted.discard(counted)
    for bundle, role in roles.items():
        BUNDLES.labels(bundle, role).set(1)
    _shown.clear()
    _shown.update(roles)
    CANARY_SHARE.set(share)
