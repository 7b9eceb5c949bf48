"""One look of the monitor at the counts: what to publish, and what it will remember once that is acknowledged. Pure.

What must hold: nothing is remembered that was not published, so that whoever learns the state again from the topics,
after a crash between sending and remembering, arrives at the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.errors import SidstreamError
from models.sids.layout import Layout
from streamer.events.layouts import layout_of
from streamer.events.records import Alert, Drift, LayerMetrics, LayoutRecord
from streamer.monitor import alerts, conditions
from streamer.monitor.layout_policy import Situation, head_size, propose_layout
from streamer.settings.monitor import MonitorSettings


@dataclass(frozen=True)
class Memory:
    """What was published until now. ``issued``: layouts of this codebook, oldest first; ``drift``: the newest record."""

    layout: Layout
    issued: tuple[LayoutRecord, ...] = ()
    firing: Mapping[str, Alert] = field(default_factory=dict)
    drift: Drift | None = None

    @property
    def issued_at(self) -> int | None:
        """When the live layout was issued; ``None`` for the bundle's own."""
        newest = self.issued[-1] if self.issued else None
        return newest.issued_at if newest and newest.generation == self.layout.generation else None

    @property
    def cause(self) -> str:
        return self.issued[-1].cause if self.issued_at is not None else ""


@dataclass(frozen=True)
class Outcome:
    """To publish: at most one layout, some alerts, at most one drift record; and the memory to adopt afterwards."""

    layout: LayoutRecord | None
    alerts: tuple[Alert, ...]
    drift: Drift | None
    memory: Memory

    @property
    def empty(self) -> bool:
        return self.layout is None and not self.alerts and self.drift is None


class Judge:
    """Looks at the counts and says what to tell; holds what does not change: settings, the bundle's layout, and the baseline
    census int64 (L, M).
    """

    def __init__(self, settings: MonitorSettings, layout: Layout, baseline_census: NDArray[np.int64]) -> None:
        if baseline_census.shape != (layout.layers, layout.size):
            raise SidstreamError(
                f"the baseline census has shape {baseline_census.shape}, the layout needs {(layout.layers, layout.size)}: "
                "fit the bundle again with `sidstream fit`"
            )
        self.settings = settings
        self.layout = layout
        self.head_size = head_size(settings, layout)
        self.baseline_items = int(baseline_census[0].sum())
        self.baseline = conditions.measure(baseline_census)
        self.baseline_metrics: tuple[LayerMetrics, ...] = conditions.layer_metrics(self.baseline)

    def remember(self, layouts: Iterable[LayoutRecord], known: Iterable[Alert]) -> Memory:
        """The memory that the topics hold, in the order of their records; the bundle's layout is the oldest possible."""
        codebook = self.layout.codebook_id
        # A generation is issued once; should another content follow, the first one was read by everybody.
        by_generation: dict[int, LayoutRecord] = {}
        for record in layouts:
            if record.codebook == codebook:
                by_generation.setdefault(record.generation, record)
        issued = tuple(by_generation[generation] for generation in sorted(by_generation))
        layout = self.layout
        if issued and issued[-1].generation > layout.generation:
            layout = layout_of(issued[-1])
        firing = alerts.after({}, (alert for alert in known if alert.codebook == codebook))
        return Memory(layout=layout, issued=issued, firing=firing)

    def look(
        self, memory: Memory, counts: NDArray[np.int64], growth: NDArray[np.int64], *, window_seconds: float, now: int
    ) -> Outcome:
        """``counts``: int64 (L, M); ``growth``: int64 (M,) of layer 2; ``now``: milliseconds since the epoch."""
        settings, codebook = self.settings, self.layout.codebook_id
        situation = Situation(
            counts=counts, growth=growth, baseline_items=self.baseline_items, window_seconds=window_seconds, now=now
        )
        record = propose_layout(settings, self.head_size, memory.layout, memory.issued_at, situation)
        if record is not None:
            memory = replace(memory, layout=layout_of(record), issued=(*memory.issued, record))
        layout = memory.layout
        measured = conditions.measure(counts)
        held = [
            *conditions.head_growth(settings, layout, situation),
            *conditions.drift(settings, codebook, measured, self.baseline, baseline_items=self.baseline_items),
            *conditions.reshortened(settings, layout, memory.issued_at, memory.cause, now),
        ]
        told = alerts.step(settings, memory.firing, held, codebook=codebook, generation=layout.generation, now=now)
        drift = Drift(
            codebook=codebook,
            at=now,
            items=situation.items,
            generation=layout.generation,
            layers=conditions.layer_metrics(measured),
            baseline=self.baseline_metrics,
        )
        due = record is not None or _due(settings, memory.drift, drift)
        memory = replace(memory, firing=alerts.after(memory.firing, told), drift=drift if due else memory.drift)
        return Outcome(layout=record, alerts=tuple(told), drift=drift if due else None, memory=memory)


def _due(settings: MonitorSettings, last: Drift | None, drift: Drift) -> bool:
    if last is None:
        return True
    changed = (last.items, last.generation, last.layers) != (drift.items, drift.generation, drift.layers)
    return changed and drift.at - last.at >= settings.drift_interval_seconds * 1000
