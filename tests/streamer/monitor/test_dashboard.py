"""The dashboard shows the view that it is given; it needs no monitor, no Faust and no broker."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from models.sids.layout import Layout
from streamer.events.records import DRIFT, Alert, Drift, LayoutRecord
from streamer.events.serving import Deployed, Serving
from streamer.monitor import conditions
from streamer.monitor.dashboard import Judged, MonitorView, Sample, state

LAYOUT = Layout(generation=3, codebook_id="abc", layers=3, size=4, head_tokens=(2,))
COUNTS = np.array([[5, 5, 5, 5], [1, 2, 16, 1], [20, 0, 0, 0]], dtype=np.int64)
BASELINE = np.full((3, 4), 10, dtype=np.int64)


def alert(key: str, severity: str, first_at: int) -> Alert:
    return msgspec.convert(
        {
            "key": key,
            "state": "firing",
            "severity": severity,
            "cause": "",
            "summary": "",
            "figures": {},
            "codebook": "abc",
            "generation": 3,
            "first_at": first_at,
            "at": first_at,
        },
        Alert,
    )


def issued(generation: int) -> LayoutRecord:
    return LayoutRecord(
        generation=generation, codebook="abc", layers=3, size=4, head_tokens=(2,), issued_at=generation, cause="a test"
    )


DRIFT_NOW = Drift(
    codebook="abc",
    at=7,
    items=20,
    generation=3,
    layers=conditions.layer_metrics(conditions.measure(COUNTS)),
    baseline=conditions.layer_metrics(conditions.measure(BASELINE)),
)
VIEW = MonitorView(
    codebook="abc",
    counts=COUNTS,
    as_of=11,
    growth=np.array([0, 1, 9, -4]),
    window_seconds=60.0,
    baseline_census=BASELINE,
    baseline=DRIFT_NOW.baseline,
    samples=[Sample.of(DRIFT_NOW)],
    judged=Judged(
        LAYOUT,
        [issued(generation) for generation in range(1, 20)],
        [alert("old", "warning", 1), alert("new", "warning", 2), alert("worst", "critical", 0)],
        DRIFT_NOW,
    ),
)


def test_page_shows_the_crowded_token_first_and_the_worst_alert_and_the_newest_layout() -> None:
    shown = state(VIEW, 99)
    assert (shown["ready"], shown["at"], shown["items"], shown["as_of"], shown["generation"]) == (True, 99, 20, 11, 3)
    assert [(one["token"], one["growth"], one["head"]) for one in shown["gaining"]] == [(2, 9, True), (1, 1, False)]
    middle = shown["layers"][1]
    assert (middle.bars, middle.head, middle.dead) == ([16, 2, 1, 1], [1, 0, 0, 0], 0)
    assert middle.now.crowded_share == 0.8
    assert [one.key for one in shown["alerts"]] == ["worst", "new", "old"]
    assert [one["generation"] for one in shown["layouts"]] == list(range(19, 7, -1))
    assert msgspec.json.decode(msgspec.json.encode(shown))["samples"] == [[7, 20, [*VIEW.samples[0].gini]]]


def test_standby_says_that_it_is_not_ready() -> None:
    assert state(replace(VIEW, judged=None), 99) == {"ready": False, "codebook": "abc", "serving": None}


def test_page_shows_who_answers_and_how_many_of_the_users_also_while_it_stands_by() -> None:
    serving = Serving(
        bundle="main",
        canary="new",
        share=0.6,
        previous="old",
        deployed=tuple(
            Deployed(bundle=name, codebook="abc", since=at) for at, name in enumerate(("old", "spare", "main", "new"))
        ),
        since=5,
        cause="deploy: 60 % of the queries",
    )
    shown = msgspec.json.decode(msgspec.json.encode(state(VIEW, 99, serving)))["serving"]
    assert [(one["bundle"], one["role"], one["share"]) for one in shown["bundles"]] == [
        ("new", "canary", 0.6),
        ("main", "main", 0.4),
        ("spare", "ready", 0.0),
        ("old", "previous", 0.0),
    ]
    assert (shown["cause"], shown["since"]) == ("deploy: 60 % of the queries", 5)
    assert state(replace(VIEW, judged=None), 99, serving)["serving"] is not None
    alone = state(VIEW, 99, msgspec.structs.replace(serving, canary=None, share=0.0))["serving"]
    assert [(one.bundle, one.share) for one in alone.bundles if one.share] == [("main", 1.0)]


def test_share_of_the_most_crowded_tenth_keeps_its_name_on_the_wire() -> None:
    value = DRIFT.encode(DRIFT_NOW)
    assert msgspec.json.decode(value)["layers"][1]["head_share"] == 0.8
    assert DRIFT.decode(value) == DRIFT_NOW
