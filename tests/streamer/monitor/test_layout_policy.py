"""Re-shortening: when a layout is issued, why, and that it does not flap."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from models.sids.layout import Layout
from streamer.events.records import LayoutRecord
from streamer.monitor.layout_policy import Situation, head_size, items_needed, propose_layout
from streamer.settings.monitor import MonitorSettings

SIZE = 20
NOW = 1_700_000_000_000
BUNDLE = Layout(generation=3, codebook_id="abc", layers=3, size=SIZE, head_tokens=(0, 1))
EVEN = [100] * SIZE


def settings(**changes: Any) -> MonitorSettings:
    return MonitorSettings(**{"minimum_items": 100, "baseline_fill": 0.0, "minimum_interval_seconds": 30.0, **changes})


def situation(counts: list[int], growth: dict[int, int] | None = None, now: int = NOW, baseline: int = 0) -> Situation:
    grown = np.zeros(len(counts), dtype=np.int64)
    for token, change in (growth or {}).items():
        grown[token] = change
    return Situation(
        counts=np.array([counts] * 3, dtype=np.int64),
        growth=grown,
        baseline_items=baseline,
        window_seconds=60.0,
        now=now,
    )


def propose(
    counts: list[int], growth: dict[int, int] | None = None, issued_at: int | None = None, **changes: Any
) -> LayoutRecord | None:
    return propose_layout(settings(**changes), 2, BUNDLE, issued_at, situation(counts, growth))


def crowd(**tokens: int) -> list[int]:
    counts = list(EVEN)
    for name, n in tokens.items():
        counts[int(name[1:])] = n
    return counts


def test_crowding_token_enters_and_the_cause_says_so() -> None:
    record = propose(crowd(t0=300, t1=300, t17=412), {17: 390})
    assert record is not None
    assert record.generation == 4
    assert record.head_tokens == (0, 1, 17)  # rank 3 is still within exit rank ceil(1.5 * 2)
    assert record.issued_at == NOW
    assert record.cause == "token 17 of layer 2 entered the head set: 412 items, 15.2% of 2,712, +390 in 60 s"


def test_token_that_leaves_past_the_exit_rank_is_named() -> None:
    record = propose(crowd(t0=300, t1=250, t5=280, t17=412), {17: 390})
    assert record is not None
    assert record.head_tokens == (0, 17)
    assert "token 1 left" in record.cause


def test_rank_without_crowding_does_not_enter() -> None:
    assert propose(crowd(t0=300, t1=199, t17=199), {17: 150}) is None


def test_nothing_is_issued_before_enough_items_are_there() -> None:
    counts = crowd(t17=412)
    assert propose(counts, {17: 390}, minimum_items=5_000) is None
    limited = settings(baseline_fill=0.5)
    assert propose_layout(limited, 2, BUNDLE, None, situation(counts, {17: 390}, baseline=10_000)) is None
    assert items_needed(limited, 10_000) == 5_000


def test_second_layout_waits_for_the_interval() -> None:
    counts = crowd(t0=300, t1=300, t17=412)
    assert propose(counts, {17: 390}, issued_at=NOW - 29_000) is None
    assert propose(counts, {17: 390}, issued_at=NOW - 30_000) is not None


def test_unchanged_head_set_is_not_issued_again_however_it_grows() -> None:
    assert propose(crowd(t0=900, t1=900), {0: 600, 1: 600}) is None


def test_leaving_alone_waits_until_head_tokens_grow() -> None:
    counts = crowd(t0=300, t1=100)
    assert propose(counts) is None
    record = propose(counts, {0: 200})
    assert record is not None
    assert record.head_tokens == (0,)


def test_two_tokens_that_swap_ranks_by_a_few_items_issue_one_layout_in_a_thousand_looks() -> None:
    """The flapping case: tokens 1 and 2 change places at rank K, over and over, beyond the interval each time."""
    layout, issued_at, issued = BUNDLE, None, 0
    for look in range(1_000):
        counts = crowd(t0=400, t1=300 + look % 2, t2=300 + (look + 1) % 2)
        now = NOW + look * 60_000
        record = propose_layout(settings(), 2, layout, issued_at, situation(counts, {1: 1, 2: 1}, now))
        if record is not None:
            issued += 1
            issued_at = now
            layout = dataclasses.replace(layout, generation=record.generation, head_tokens=record.head_tokens)
    assert issued == 1
    assert layout.head_tokens == (0, 1, 2)


def test_methods_none_all_and_top_p() -> None:
    counts = crowd(t0=300, t1=300, t17=2_000)
    assert propose(counts, {17: 390}, method="none") is None
    everything = propose(counts, {17: 390}, method="all")
    assert everything is not None
    assert everything.head_tokens == tuple(range(SIZE))
    share = propose(counts, {17: 390}, method="top_p", head_share=0.5, minimum_share_factor=1.0)
    assert share is not None
    assert share.head_tokens == (0, 1, 17)  # 1 is not needed for half of the items, but for two thirds


def test_head_size_comes_from_settings_then_bundle_then_a_tenth() -> None:
    assert head_size(settings(head_size=7), BUNDLE) == 7
    assert head_size(settings(), BUNDLE) == 2
    assert head_size(settings(), dataclasses.replace(BUNDLE, head_tokens=(), size=256)) == 25


@pytest.mark.parametrize("entered", [5, 9])
def test_many_entering_tokens_are_counted_not_listed(entered: int) -> None:
    counts = [1] * SIZE
    for token in range(2, 2 + entered):
        counts[token] = 500 + token
    record = propose_layout(settings(minimum_share_factor=1.0), entered, BUNDLE, None, situation(counts))
    assert record is not None
    assert f"and {entered - 4} more entered" in record.cause
