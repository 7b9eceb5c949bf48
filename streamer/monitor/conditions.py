"""The conditions that are worth telling: measured values, their thresholds and how far beyond them they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.sids.census import LayerCensus, measure_layer
from models.sids.head_tokens import top_k
from models.sids.layout import Layout
from streamer.events.records import LayerMetrics
from streamer.monitor.layout_policy import Situation, items_needed
from streamer.settings.monitor import MonitorSettings

Severity = Literal["info", "warning", "critical"]
RESHORTENED_PREFIX: Final = "reshortened:"


@dataclass(frozen=True)
class Condition:
    """Something worth telling. ``ratio``: the measured value divided by its threshold; from 1 on it fires."""

    key: str
    ratio: float
    cause: str
    summary: str
    figures: dict[str, float]
    severity: Severity | None = None  # fixed; otherwise it follows from the ratio


def head_growth(settings: MonitorSettings, layout: Layout, situation: Situation) -> list[Condition]:
    """Layer-2 tokens that gain items faster than the catalogue as a whole.

    A token's *fair part* of what was gained is its share of the items before the window. What it gained beyond that is
    compared with all items (``growth_share``) and, for a crowded token, with all that was gained (``growth_traffic_share``).
    Judged only where enough items were there before the window began: filling an index is no fad.
    """
    counts, growth = situation.head_counts, situation.growth
    items = situation.items
    before = items - int(growth.sum())
    if before < items_needed(settings, situation.baseline_items):
        return []
    gained = int(np.maximum(growth, 0).sum())
    fair = max(0, items - before) * (counts - growth) / before
    excess = growth - fair
    of_items = excess / before / settings.growth_share
    of_gained = excess / max(1, gained) / settings.growth_traffic_share
    crowded = counts >= settings.minimum_share_factor * items / layout.size
    ratio = np.maximum(of_items, np.where(crowded, of_gained, 0.0))
    # Below clear_factor no alert can fire or stay, so the many quiet tokens make no condition.
    tokens = np.flatnonzero(
        (growth >= settings.minimum_growth * settings.clear_factor) & (ratio >= settings.clear_factor)
    )
    conditions = []
    for token in tokens.tolist():
        n, gain = int(counts[token]), int(growth[token])
        strength = float(ratio[token])
        if gain < settings.minimum_growth:
            strength = min(strength, 0.99)  # keeps a firing alert, fires no new one
        conditions.append(
            Condition(
                key=f"head-growth:{layout.codebook_id}:2:{token}",
                ratio=strength,
                cause=f"token {token} of layer 2 gained {gain:,} of the {gained:,} items "
                f"that arrived within {situation.window_seconds:g} s",
                summary=f"token {token} of layer 2 is crowding: {n:,} items, {n / items:.1%} of {items:,}"
                + (", left out of SIDs" if layout.is_head[token] else ""),
                figures={
                    "items": n,
                    "share": n / items,
                    "growth": gain,
                    "growth_share": gain / before,
                    "traffic_share": gain / max(1, gained),
                },
            )
        )
    return conditions


def reshortened(
    settings: MonitorSettings, layout: Layout, issued_at: int | None, cause: str, now: int
) -> list[Condition]:
    """The news that a layout was issued, for a while. ``issued_at``: ``None`` for the bundle's own layout."""
    if issued_at is None or now - issued_at >= settings.reshortened_seconds * 1000:
        return []
    return [
        Condition(
            key=f"{RESHORTENED_PREFIX}{layout.codebook_id}",
            ratio=1.0,
            severity="info",
            cause=cause,
            summary=f"layout {layout.generation} is live: {len(layout.head_tokens)} layer-2 tokens are left out of SIDs",
            figures={"generation": layout.generation, "head_tokens": len(layout.head_tokens)},
        )
    ]


# The *crowded share*: what part of a layer's items its most crowded tenth of tokens holds (paper README, "top 10 % share").
# Unlike the share of the head tokens it exists in every layer and does not jump when a new layout names others. Settings,
# alerts and the wire call it head_share, from before it had a name of its own.
CROWDED_PART: Final = 10
_METRICS: Final = {
    "entropy": "entropy",
    "gini": "Gini coefficient",
    "standard_deviation": "standard deviation / mean",
    "head_share": "share of the most crowded tenth of tokens",
}


def measure(counts: NDArray[np.int64]) -> tuple[LayerCensus, ...]:
    """Every layer's measures of a census (L, M); the most crowded tenth of a layer stands for its head tokens."""
    return tuple(measure_layer(row, top_k(row, max(1, len(row) // CROWDED_PART))) for row in counts)


def layer_metrics(census: Iterable[LayerCensus]) -> tuple[LayerMetrics, ...]:
    """The measures as they go on the wire; layers are counted from 1."""
    return tuple(
        LayerMetrics(
            layer=layer,
            entropy=measures.entropy,
            gini=measures.gini,
            standard_deviation=measures.standard_deviation,
            crowded_share=measures.head_share,
        )
        for layer, measures in enumerate(census, start=1)
    )


def drift(
    settings: MonitorSettings,
    codebook: str,
    now: Iterable[LayerCensus],
    baseline: Iterable[LayerCensus],
    *,
    baseline_items: int,
) -> list[Condition]:
    """Measures that have left their baseline, in either direction.

    Judged from ``max(minimum_items, baseline_fill × baseline items)`` items on: an index that is still being filled has
    other measures than the catalogue that it will hold.
    """
    conditions = []
    needed = items_needed(settings, baseline_items)
    for layer, (current, reference) in enumerate(zip(now, baseline, strict=True), start=1):
        if current.items < needed or reference.items == 0:
            continue
        for metric, value, expected, threshold in (
            ("entropy", current.entropy, reference.entropy, settings.entropy_change),
            ("gini", current.gini, reference.gini, settings.gini_change),
            (
                "standard_deviation",
                current.relative_standard_deviation,
                reference.relative_standard_deviation,
                settings.standard_deviation_change * reference.relative_standard_deviation,
            ),
            ("head_share", current.head_share, reference.head_share, settings.head_share_change),
        ):
            change = value - expected
            if threshold <= 0 or abs(change) < settings.clear_factor * threshold:
                continue
            conditions.append(
                Condition(
                    key=f"drift:{codebook}:{layer}:{metric}",
                    ratio=abs(change) / threshold,
                    cause=f"{_METRICS[metric]} {'rose' if change > 0 else 'fell'} by {abs(change):.3f} since the codebook was "
                    f"fitted, threshold {threshold:.3f}",
                    summary=f"layer {layer} has drifted: {_METRICS[metric]} {value:.3f} instead of {expected:.3f}",
                    figures={
                        "now": value,
                        "baseline": expected,
                        "change": change,
                        "threshold": threshold,
                        "items": current.items,
                    },
                )
            )
    return conditions
