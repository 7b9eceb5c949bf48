"""The monitor over HTTP, read-only: one page for people, ``/state`` behind it, and the exact counts at ``/counts``.

The pages know the view of one moment and not the monitor that it is of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.sids.layout import HEAD_LAYER_INDEX, Layout
from streamer.events.records import Alert, Drift, LayerMetrics, LayoutRecord
from streamer.events.serving import Serving
from streamer.process.http_headers import page_headers

SAMPLES: Final = 240  # drift records kept for the page's lines: 20 minutes at 5 s
_BARS: Final = 256  # more tokens than this share bars
_LAYOUTS_SHOWN: Final = 12


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One point of the page's lines: time in milliseconds, live items, Gini coefficient of each layer."""

    at: int
    items: int
    gini: tuple[float, ...]

    @classmethod
    def of(cls, drift: Drift) -> Sample:
        return cls(drift.at, drift.items, tuple(layer.gini for layer in drift.layers))


@dataclass(frozen=True)
class Judged:
    """What an active monitor has told until now. ``issued``: layouts, oldest first; ``drift``: the newest record."""

    layout: Layout
    issued: Sequence[LayoutRecord]
    firing: Sequence[Alert]
    drift: Drift | None


@dataclass(frozen=True)
class MonitorView:
    """What the pages show of one moment.

    ``counts`` and ``baseline_census``: int64 (L, M); ``growth``: int64 (M,), net change of layer 2 within ``window_seconds``;
    ``judged``: ``None`` on a standby and before the first look.
    """

    codebook: str
    counts: NDArray[np.int64]
    as_of: int
    growth: NDArray[np.int64]
    window_seconds: float
    baseline_census: NDArray[np.int64]
    baseline: Sequence[LayerMetrics]
    samples: Sequence[Sample]
    judged: Judged | None


class LayerView(msgspec.Struct, frozen=True):
    """One layer: bars are items per token, the most crowded token first; ``head`` says which of them hold head tokens."""

    now: LayerMetrics
    baseline: LayerMetrics
    bars: list[float]
    baseline_bars: list[float]
    head: list[float]
    dead: int


class BundleView(msgspec.Struct, frozen=True):
    """A deployed bundle. ``role``: main, canary, previous (what a rollback goes back to), or ready; ``share``: part of the users
    that it answers, 0 to 1; ``since``: milliseconds since the epoch."""

    bundle: str
    codebook: str
    role: str
    share: float
    since: int


class ServingView(msgspec.Struct, frozen=True):
    """What answers queries: every deployed bundle, the one that answers most first, and the last change's cause and time."""

    bundles: list[BundleView]
    cause: str
    since: int

    @classmethod
    def of(cls, serving: Serving) -> ServingView:
        canary = 0.0 if serving.canary is None else serving.share
        roles = {serving.previous: ("previous", 0.0), serving.canary: ("canary", canary)}
        roles[serving.bundle] = ("main", 1.0 - canary)
        bundles = [
            BundleView(one.bundle, one.codebook, *roles.get(one.bundle, ("ready", 0.0)), one.since)
            for one in serving.deployed
        ]
        return cls(sorted(bundles, key=lambda one: (-one.share, -one.since)), serving.cause, serving.since)


def state(view: MonitorView, now: int, serving: Serving | None = None) -> dict[str, Any]:
    """Everything that the page shows, at ``now`` in milliseconds; ``serving``: the record of what answers, if there is one."""
    answers = None if serving is None else ServingView.of(serving)
    judged = view.judged
    if judged is None:
        return {"ready": False, "codebook": view.codebook, "serving": answers}
    counts, growth, layout, drift = view.counts, view.growth, judged.layout, judged.drift
    gaining = np.argsort(-growth, kind="stable")[:5]
    return {
        "ready": True,
        "serving": answers,
        "at": now,
        "codebook": layout.codebook_id,
        "items": int(counts[HEAD_LAYER_INDEX].sum()),
        "as_of": view.as_of,
        "size": layout.size,
        "generation": layout.generation,
        "head_tokens": len(layout.head_tokens),
        "window_seconds": view.window_seconds,
        "gaining": [
            {
                "token": int(token),
                "items": int(counts[HEAD_LAYER_INDEX, token]),
                "growth": int(growth[token]),
                "head": bool(layout.is_head[token]),
            }
            for token in gaining
            if growth[token] > 0
        ],
        "layers": [
            _layer(row, baseline_row, metrics, reference, layout.is_head if index == HEAD_LAYER_INDEX else None)
            for index, (row, baseline_row, metrics, reference) in enumerate(
                zip(counts, view.baseline_census, drift.layers, view.baseline, strict=True) if drift is not None else ()
            )
        ],
        "alerts": sorted(judged.firing, key=lambda alert: (_RANK[alert.severity], -alert.first_at)),
        "layouts": [
            {
                "generation": record.generation,
                "head_tokens": len(record.head_tokens),
                "issued_at": record.issued_at,
                "cause": record.cause,
            }
            for record in judged.issued[: -_LAYOUTS_SHOWN - 1 : -1]
        ],
        "samples": view.samples,
    }


_RANK: Final = {"critical": 0, "warning": 1, "info": 2}


def _layer(
    counts: NDArray[np.int64],
    baseline: NDArray[np.int64],
    metrics: LayerMetrics,
    reference: LayerMetrics,
    is_head: NDArray[np.bool_] | None,
) -> LayerView:
    order = np.argsort(-counts, kind="stable")
    scale = counts.sum() / max(1, baseline.sum())
    flags = np.zeros(len(counts)) if is_head is None else is_head[order].astype(np.float64)
    return LayerView(
        now=metrics,
        baseline=reference,
        bars=_bars(counts[order].astype(np.float64)),
        baseline_bars=_bars(np.sort(baseline)[::-1] * scale),
        head=_bars(flags),
        dead=int((counts == 0).sum()),
    )


def _bars(values: NDArray[np.float64]) -> list[float]:
    """The values (M,), or means of ``_BARS`` neighbouring groups of them."""
    groups = [values] if len(values) <= _BARS else np.array_split(values, _BARS)
    means = values if len(groups) == 1 else np.array([group.mean() for group in groups])
    return [round(float(value), 2) for value in means]


def add_pages(
    app: Any, look: Callable[[int], MonitorView], serving: Callable[[], Serving | None] = lambda: None
) -> None:
    """Register ``/``, ``/state`` and ``/counts`` with the web server of a Faust app; ``look``: the view at a time in ms;
    ``serving``: what answers now."""
    page_text = files("streamer.monitor").joinpath("dashboard.html").read_text(encoding="utf-8")
    headers = page_headers(page_text)

    def json(web: Any, value: Any) -> Any:
        return web.bytes(msgspec.json.encode(value), content_type="application/json")

    def now() -> int:
        return int(time.time() * 1000)

    @app.page("/")  # type: ignore[untyped-decorator]
    async def page(web: Any, _request: Any) -> Any:
        return web.html(page_text, headers=headers)

    @app.page("/state")  # type: ignore[untyped-decorator]
    async def current(web: Any, _request: Any) -> Any:
        return json(web, state(look(at := now()), at, serving()))

    @app.page("/counts")  # type: ignore[untyped-decorator]
    async def counts(web: Any, _request: Any) -> Any:
        view = look(now())
        return json(web, {"codebook": view.codebook, "as_of": view.as_of, "counts": view.counts.tolist()})
