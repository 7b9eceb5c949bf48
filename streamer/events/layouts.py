"""A layout as its record has it."""

from __future__ import annotations

from models.sids.layout import Layout
from streamer.events.records import LayoutRecord


def layout_of(record: LayoutRecord) -> Layout:
    """The layout that a record issues."""
    return Layout(
        generation=record.generation,
        codebook_id=record.codebook,
        layers=record.layers,
        size=record.size,
        head_tokens=record.head_tokens,
    )
