"""When a new layout is issued, and with which head tokens: pure, so that the same counts give the same layout.

What must hold: generations only rise; at most one new layout per interval; a token enters the head set only when it is
crowded and of a good rank, and leaves only past a wider rank (design § 4, "Why the re-shortening does not flap").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sids.head_tokens import all_tokens, with_hysteresis, with_share_hysteresis
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from streamer.events.records import LayoutRecord
from streamer.settings.monitor import MonitorSettings

_TOKENS_NAMED = 3


@dataclass(frozen=True)
class Situation:
    """What a decision is made from, at one moment.

    ``counts``: int64 (L, M); ``growth``: int64 (M,), net change of the layer-2 tokens in the rolling window of
    ``window_seconds``; ``now``: milliseconds since the epoch; ``baseline_items``: items that the bundle was fitted on.
    """

    counts: NDArray[np.int64]
    growth: NDArray[np.int64]
    baseline_items: int
    window_seconds: float
    now: int

    @property
    def items(self) -> int:
        return int(self.head_counts.sum())

    @property
    def head_counts(self) -> NDArray[np.int64]:
        """int64 (M,): counts of layer 2."""
        row: NDArray[np.int64] = self.counts[HEAD_LAYER_INDEX]
        return row


def items_needed(settings: MonitorSettings, baseline_items: int) -> int:
    """Below this many items an index is still being filled, and nothing is judged."""
    return max(settings.minimum_items, math.ceil(settings.baseline_fill * baseline_items))


def head_size(settings: MonitorSettings, bundle_layout: Layout) -> int:
    """K: of the settings, or the bundle's number of head tokens, or a tenth of the tokens."""
    return settings.head_size or len(bundle_layout.head_tokens) or max(1, bundle_layout.size // 10)


def propose_layout(
    settings: MonitorSettings, size: int, layout: Layout, issued_at: int | None, situation: Situation
) -> LayoutRecord | None:
    """The next layout, or ``None`` to keep ``layout``. ``size``: K of top_k; ``issued_at``: when ``layout`` was issued."""
    now, items = situation.now, situation.items
    if settings.method == "none" or items < items_needed(settings, situation.baseline_items):
        return None
    # A clock that was set back must not hold layouts back until it has caught up.
    if issued_at is not None and 0 <= now - issued_at < settings.minimum_interval_seconds * 1000:
        return None
    wanted = _wanted(settings, size, layout, situation)
    entered = [token for token in wanted if not layout.is_head[token]]
    left = sorted(set(layout.head_tokens).difference(wanted))
    if not entered:
        grown = int(situation.growth[list(wanted)].sum()) if wanted else 0
        if not left or grown < max(1.0, settings.layout_growth_share * items):
            return None
    return LayoutRecord(
        generation=layout.generation + 1,
        codebook=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
        head_tokens=wanted,
        issued_at=now,
        cause=_cause(settings, entered, left, situation),
    )


def _wanted(settings: MonitorSettings, size: int, layout: Layout, situation: Situation) -> tuple[int, ...]:
    counts = situation.head_counts
    current = layout.head_tokens
    if settings.method == "all":
        return all_tokens(layout.size)
    if settings.method == "top_p":
        # The tail that is left over shrinks by the factor by which top_k's rank widens.
        exit_share = 1 - (1 - settings.head_share) / settings.exit_factor
        ranked = with_share_hysteresis(counts, current, settings.head_share, exit_share)
    else:
        ranked = with_hysteresis(counts, current, size, math.ceil(settings.exit_factor * size))
    crowded = settings.minimum_share_factor * situation.items / layout.size
    return tuple(
        token
        for token in ranked
        if counts[token] >= crowded * (settings.clear_factor if layout.is_head[token] else 1.0)
    )


def _cause(settings: MonitorSettings, entered: list[int], left: list[int], situation: Situation) -> str:
    if settings.method == "all":
        return f"every layer-2 token is left out (monitor.method = all); {situation.items:,} items"
    counts, items = situation.head_counts, situation.items
    # The one that grew most tells the story; the rest are counted.
    entered = sorted(entered, key=lambda token: (-int(situation.growth[token]), -int(counts[token]), token))
    parts = []
    if entered:
        first = entered[0]
        text = (
            f"token {first} of layer 2 entered the head set: {int(counts[first]):,} items, "
            f"{counts[first] / items:.1%} of {items:,}"
        )
        if situation.growth[first] > 0:
            text += f", {int(situation.growth[first]):+,} in {situation.window_seconds:g} s"
        parts.append(text)
        if len(entered) > 1:
            parts.append("also " + _named(entered[1:]) + " entered")
    if left:
        parts.append(_named(left) + " left")
    return "; ".join(parts)


def _named(tokens: list[int]) -> str:
    shown = ", ".join(map(str, tokens[:_TOKENS_NAMED]))
    more = len(tokens) - _TOKENS_NAMED
    return ("tokens " if len(tokens) > 1 else "token ") + shown + (f" and {more} more" if more > 0 else "")
