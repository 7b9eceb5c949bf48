"""The figures that the demo measures while it runs; its summary shows nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figures:
    """What the summary tells; seconds and counts as measured."""

    products: int = 0
    examples: int = 0
    parameters: int = 0
    fit_seconds: float = 0.0
    train_seconds: float = 0.0
    trained_share: float = 1.0
    loss: float = 0.0
    burst_items: int = 0
    burst_seconds: float = 0.0
    fresh_p50_ms: float = 0.0
    fresh_p99_ms: float = 0.0
    fresh_items: int = 0
    queries: int = 0
    unanswered: int = 0
    invalid_items: int = 0
    query_p50_ms: float = 0.0
    query_p95_ms: float = 0.0
    layouts: set[int] = field(default_factory=set)
    reshortened_after_seconds: float | None = None
    reshortened_items: int = 0
    alerts_fired: int = 0
    alerts_resolved: int = 0
    deleted_in_answers: int = 0
    found_late: float = 0.0  # share among the first ten, asked by their own words
    found_known: float = 0.0
    sold_out_in_answers: int = 0
    refresh_seconds: float = 0.0
    refresh_outcome: str = ""
    learnt_before: float = 0.0  # share of new products among the first ten by the model alone
    learnt_after: float = 0.0
    refresh_queries: int = 0
    refresh_unanswered: int = 0
    refresh_invalid: int = 0
