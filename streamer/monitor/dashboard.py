"""The monitor over HTTP, read-only: one page for people, ``/state`` behind it, and the exact counts at ``/counts``."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.sids.layout import HEAD_LAYER_INDEX
from streamer.events.records import LayerMetrics
from streamer.process.http_headers import page_headers

if TYPE_CHECKING:
    from streamer.monitor.agent import Monitor


_BARS: Final = 256  # more tokens than this share bars
_LAYOUTS_SHOWN: Final = 12


class LayerView(msgspec.Struct, frozen=True):
    """One layer: bars are items per token, the most crowded token first; ``head`` says which of them hold head tokens."""

    now: LayerMetrics
    baseline: LayerMetrics
    bars: list[float]
    baseline_bars: list[float]
    head: list[float]
    dead: int


def state(monitor: Monitor, now: int) -> dict[str, Any]:
    """Everything that the page shows; ``ready`` is false on a standby and before the first look."""
    memory = monitor.memory
    if memory is None:
        return {"ready": False, "codebook": monitor.evaluator.layout.codebook_id}
    evaluator, counts = monitor.evaluator, monitor.census.counts
    layout = memory.layout
    growth = monitor.census.growth(now)
    gaining = np.argsort(-growth, kind="stable")[:5]
    drift = memory.drift
    return {
        "ready": True,
        "at": now,
        "codebook": layout.codebook_id,
        "items": int(counts[HEAD_LAYER_INDEX].sum()),
        "as_of": monitor.census.as_of,
        "size": layout.size,
        "generation": layout.generation,
        "head_tokens": len(layout.head_tokens),
        "window_seconds": monitor.shape.seconds,
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
                zip(counts, monitor.baseline_census, drift.layers, evaluator.baseline_metrics, strict=True)
                if drift is not None
                else ()
            )
        ],
        "alerts": sorted(memory.firing.values(), key=lambda alert: (_RANK[alert.severity], -alert.first_at)),
        "layouts": [
            {
                "generation": record.generation,
                "head_tokens": len(record.head_tokens),
                "issued_at": record.issued_at,
                "cause": record.cause,
            }
            for record in memory.issued[: -_LAYOUTS_SHOWN - 1 : -1]
        ],
        "samples": monitor.history,
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


def add_pages(app: Any, monitor: Monitor) -> None:
    """Register ``/``, ``/state`` and ``/counts`` with the web server of a Faust app."""
    page_text = files("streamer.monitor").joinpath("dashboard.html").read_text(encoding="utf-8")
    headers = page_headers(page_text)

    def json(web: Any, value: Any) -> Any:
        return web.bytes(msgspec.json.encode(value), content_type="application/json")

    @app.page("/")  # type: ignore[untyped-decorator]
    async def page(web: Any, _request: Any) -> Any:
        return web.html(page_text, headers=headers)

    @app.page("/state")  # type: ignore[untyped-decorator]
    async def current(web: Any, _request: Any) -> Any:
        return json(web, state(monitor, int(time.time() * 1000)))

    @app.page("/counts")  # type: ignore[untyped-decorator]
    async def counts(web: Any, _request: Any) -> Any:
        layout = monitor.evaluator.layout
        return json(
            web,
            {"codebook": layout.codebook_id, "as_of": monitor.census.as_of, "counts": monitor.census.counts.tolist()},
        )
