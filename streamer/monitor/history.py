"""What the dashboard draws as lines: a few figures of each drift record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from streamer.events.records import Drift

if TYPE_CHECKING:
    pass


SAMPLES: Final = 240  # drift records kept for the page's lines: 20 minutes at 5 s


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One point of the page's lines: time in milliseconds, live items, Gini coefficient of each layer."""

    at: int
    items: int
    gini: tuple[float, ...]


def sample(drift: Drift) -> Sample:
    return Sample(drift.at, drift.items, tuple(layer.gini for layer in drift.layers))
