"""Alerts fire once, escalate, repeat rarely, and end well below where they began."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.sids.layout import Layout
from streamer.events.records import Alert, LayoutRecord
from streamer.monitor import conditions
from streamer.monitor.alerts import after, step
from streamer.monitor.conditions import Condition
from streamer.monitor.layout_policy import Situation
from streamer.monitor.look import Judge, Memory
from streamer.settings.monitor import MonitorSettings

NOW = 1_700_000_000_000
SIZE = 50
LAYOUT = Layout(generation=1, codebook_id="abc", layers=3, size=SIZE, head_tokens=(0, 1))
SETTINGS = MonitorSettings(minimum_items=1_000, baseline_fill=0.5, head_size=2, minimum_interval_seconds=30)


def condition(ratio: float, **figures: float) -> Condition:
    return Condition(key="k", ratio=ratio, cause="c", summary="s", figures={"ratio": ratio, **figures})


def run(ratios: list[float | None], seconds: int = 1) -> list[tuple[int, str, str]]:
    """(look, state, severity) of what is sent when the ratio goes this way; ``None``: the condition is absent."""
    firing: dict[str, Alert] = {}
    told = []
    for look, ratio in enumerate(ratios):
        conditions = [] if ratio is None else [condition(ratio)]
        sent = step(SETTINGS, firing, conditions, codebook="abc", generation=1, now=NOW + look * seconds * 1_000)
        told += [(look, alert.state, alert.severity) for alert in sent]
        firing = after(firing, sent)
    return told


def test_condition_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    assert run([0.5, 1.1, 1.2, 1.1, 0.5, 0.5]) == [(1, "firing", "warning"), (4, "resolved", "warning")]


def test_alert_does_not_flap_around_its_threshold() -> None:
    assert run([1.01, 0.99, 1.01, 0.85, 1.0, 0.81]) == [(0, "firing", "warning")]


def test_severity_rises_and_falls_with_hysteresis() -> None:
    assert run([1.2, 2.1, 1.9, 2.1, 1.5, 0.1]) == [
        (0, "firing", "warning"),
        (1, "firing", "critical"),
        (4, "firing", "warning"),
        (5, "resolved", "warning"),
    ]


def test_absent_condition_resolves() -> None:
    assert run([1.5, None]) == [(0, "firing", "warning"), (1, "resolved", "warning")]


def test_firing_alert_is_sent_again_after_the_repeat_time() -> None:
    told = run([1.5] * 21, seconds=60)
    assert [look for look, _, _ in told] == [0, 10, 20]


def test_resolved_alert_keeps_when_it_began_and_says_how_long_it_was() -> None:
    fired = step(SETTINGS, {}, [condition(1.5)], codebook="abc", generation=1, now=NOW)
    ended = step(SETTINGS, after({}, fired), [], codebook="abc", generation=2, now=NOW + 90_000)
    assert (ended[0].first_at, ended[0].at, ended[0].generation) == (NOW, NOW + 90_000, 2)
    assert ended[0].summary == "over after 90 s: s"


def test_state_learned_again_from_the_topic_tells_nothing_twice() -> None:
    sent = step(SETTINGS, {}, [condition(1.5)], codebook="abc", generation=1, now=NOW)
    relearned = after({}, sent)
    assert step(SETTINGS, relearned, [condition(1.5)], codebook="abc", generation=1, now=NOW + 1_000) == []
    assert [a.state for a in step(SETTINGS, relearned, [], codebook="abc", generation=1, now=NOW + 1_000)] == [
        "resolved"
    ]


def situation(counts: np.ndarray[Any, Any], growth: dict[int, int], baseline: int = 0) -> Situation:
    grown = np.zeros(SIZE, dtype=np.int64)
    for token, change in growth.items():
        grown[token] = change
    return Situation(counts=np.stack([counts] * 3), growth=grown, baseline_items=baseline, window_seconds=60.0, now=NOW)


def even(n: int = 100) -> np.ndarray[Any, Any]:
    return np.full(SIZE, n, dtype=np.int64)


def test_fad_of_near_identical_products_is_head_growth_with_its_figures() -> None:
    counts = even()
    counts[17] = 512
    (found,) = conditions.head_growth(SETTINGS, LAYOUT, situation(counts, {17: 412}))
    assert found.key == "head-growth:abc:2:17"
    assert found.ratio > SETTINGS.critical_factor
    assert found.figures["growth"] == 412
    assert found.figures["traffic_share"] == 1.0
    assert "token 17 of layer 2 gained 412 of the 412 items that arrived within 60 s" in found.cause


def test_catalogue_that_grows_evenly_is_no_head_growth() -> None:
    counts = even(200)
    counts[0] = 2_000
    growth = {token: 100 for token in range(1, SIZE)} | {0: 1_000}
    assert conditions.head_growth(SETTINGS, LAYOUT, situation(counts, growth)) == []


def test_index_that_is_being_filled_is_no_head_growth() -> None:
    counts = even(10)
    counts[17] = 512
    assert conditions.head_growth(SETTINGS, LAYOUT, situation(counts, {17: 512})) == []
    counts = even()
    counts[17] = 512
    assert conditions.head_growth(SETTINGS, LAYOUT, situation(counts, {17: 412}, baseline=50_000)) == []


def test_growth_of_a_handful_of_items_is_not_told() -> None:
    counts = even(30)
    counts[17] = 90
    assert [c for c in conditions.head_growth(SETTINGS, LAYOUT, situation(counts, {17: 45})) if c.ratio >= 1] == []


def test_small_share_of_a_large_catalogue_is_told_when_it_takes_the_traffic() -> None:
    counts = even(20_000)
    counts[17] = 60_000
    quiet = {token: 5 for token in range(SIZE)}
    (found,) = conditions.head_growth(SETTINGS, LAYOUT, situation(counts, quiet | {17: 2_000}))
    assert found.ratio == pytest.approx(0.87 / 0.25, rel=0.05)


def test_drift_names_layer_metric_and_both_values() -> None:
    baseline = np.stack([even()] * 3)
    crowded = baseline.copy()
    crowded[1, 17] = 4_000
    found = conditions.drift(
        SETTINGS,
        "abc",
        conditions.measure(crowded),
        conditions.measure(baseline + np.arange(SIZE)),
        baseline_items=5_000,
    )
    keys = {c.key for c in found}
    assert {"drift:abc:2:entropy", "drift:abc:2:gini", "drift:abc:2:head_share"} <= keys
    assert all(c.key.startswith("drift:abc:2:") for c in found if c.ratio >= 1 and "standard" not in c.key)
    gini = next(c for c in found if c.key == "drift:abc:2:gini")
    assert "rose by" in gini.cause
    assert gini.figures["threshold"] == SETTINGS.gini_change


def test_drift_waits_until_half_of_the_baseline_is_there() -> None:
    baseline = np.stack([even(1_000)] * 3)
    partial = np.zeros_like(baseline)
    partial[:, 17] = 24_999
    measures = conditions.measure(baseline)
    assert conditions.drift(SETTINGS, "abc", conditions.measure(partial), measures, baseline_items=50_000) == []
    partial[:, 17] = 25_000
    assert conditions.drift(SETTINGS, "abc", conditions.measure(partial), measures, baseline_items=50_000) != []


class Story:
    """A judge that looks each second, as the monitor's timer does."""

    def __init__(self, baseline: np.ndarray[Any, Any], settings: MonitorSettings = SETTINGS) -> None:
        self.judge = Judge(settings, LAYOUT, baseline)
        self.memory = self.judge.remember([], [])
        self.now = NOW
        self.layouts: list[LayoutRecord] = []
        self.alerts: list[Alert] = []

    def look(self, counts: np.ndarray[Any, Any], growth: dict[int, int] | None = None, *, lost: bool = False) -> None:
        grown = np.zeros(SIZE, dtype=np.int64)
        for token, change in (growth or {}).items():
            grown[token] = change
        self.now += 1_000
        outcome = self.judge.look(self.memory, counts, grown, window_seconds=60.0, now=self.now)
        if lost:
            return
        if outcome.layout is not None:
            self.layouts.append(outcome.layout)
        self.alerts += outcome.alerts
        self.memory = outcome.memory

    def restart(self) -> None:
        self.memory = self.judge.remember(self.layouts, self.alerts)


def calm() -> np.ndarray[Any, Any]:
    counts = np.stack([even()] * 3)
    counts[:, :2] = 300
    return counts


def fad() -> np.ndarray[Any, Any]:
    counts = calm()
    counts[1, 17] = 900
    return counts


def test_fad_fires_reshortens_and_clears() -> None:
    story = Story(calm())
    story.look(calm())
    assert (story.layouts, story.alerts) == ([], [])
    for _ in range(5):
        story.look(fad(), {17: 800})
    assert [record.generation for record in story.layouts] == [2]
    assert 17 in story.layouts[0].head_tokens
    keys = [alert.key for alert in story.alerts]
    assert len(keys) == len(set(keys))
    assert {"head-growth:abc:2:17", "reshortened:abc"} <= set(keys)
    for _ in range(70):
        story.look(fad())
    assert [a.state for a in story.alerts if a.key == "head-growth:abc:2:17"] == ["firing", "resolved"]
    assert [a.state for a in story.alerts if a.key == "reshortened:abc"] == ["firing", "resolved"]
    assert [record.generation for record in story.layouts] == [2]


@pytest.mark.parametrize("lost", [False, True])
def test_restart_between_sending_and_remembering_arrives_at_the_same_state(lost: bool) -> None:
    story = Story(calm())
    story.look(fad(), {17: 800}, lost=lost)
    story.restart()
    for _ in range(3):
        story.look(fad(), {17: 800})
        story.restart()
    assert [record.generation for record in story.layouts] == [2]
    assert len([alert for alert in story.alerts if alert.key == "head-growth:abc:2:17"]) == 1


def test_newest_generation_wins_over_the_bundle_and_other_codebooks_do_not_count() -> None:
    judge = Judge(SETTINGS, LAYOUT, calm())

    def issued(generation: int, codebook: str, *tokens: int) -> LayoutRecord:
        return LayoutRecord(
            generation=generation, codebook=codebook, layers=3, size=SIZE, head_tokens=tokens, issued_at=NOW, cause="c"
        )

    memory: Memory = judge.remember([issued(4, "abc", 5), issued(3, "abc", 6), issued(9, "other", 7)], [])
    assert (memory.layout.generation, memory.layout.head_tokens, memory.issued_at) == (4, (5,), NOW)
    assert judge.remember([issued(1, "abc", 5)], []).layout == LAYOUT
    assert judge.remember([issued(4, "abc", 5), issued(4, "abc", 6)], []).layout.head_tokens == (5,)
