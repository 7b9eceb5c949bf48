"""The assigner's own metrics: what it takes, but would rather have otherwise."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

UNKNOWN_FIELDS: Final = Counter(
    "sidstream_unknown_fields",
    "Item updates that had a field which no update has; names beyond sixteen are (other)",
    ["field"],
)
OTHER_MODEL: Final = Counter(
    "sidstream_other_embedding_model",
    "Item updates that were passed over, as their embedding_model is not the one that the bundle was fitted on",
)
IMPLAUSIBLE_NORMS: Final = Counter(
    "sidstream_implausible_norms",
    "Item updates that were taken although their embedding's norm is far outside those of the bundle's fit",
)
