"""The monitor's own metrics: the census per layer, the live layout, what fires, and how long a look at the counts takes."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

BAD_COUNTS: Final = Counter("sidstream_monitor_bad_counts", "Records of token-counts that are no counts")
FOREIGN_COUNTS: Final = Counter("sidstream_monitor_foreign_counts", "Counts of other codebooks: kept, not judged")
ENTROPY: Final = Gauge("sidstream_census_entropy_ratio", "Entropy of the census over log M: 1 is even", ["layer"])
GINI: Final = Gauge("sidstream_census_gini_ratio", "Gini coefficient of the census: 0 is even", ["layer"])
DEVIATION: Final = Gauge(
    "sidstream_census_standard_deviation_items", "Standard deviation of items per token", ["layer"]
)
CROWDED_SHARE: Final = Gauge(
    "sidstream_census_head_share_ratio", "Share of the items on the most crowded tenth of the tokens", ["layer"]
)
HEAD_TOKENS: Final = Gauge("sidstream_layout_head_tokens", "Head tokens of the live layout")
FIRING: Final = Gauge("sidstream_alerts_firing", "Drift alerts that fire now", ["severity"])
LOOK_SECONDS: Final = Histogram(
    "sidstream_monitor_look_seconds", "Seconds of one look at the counts, publishing included"
)
