"""A fresh index out of the topics: the partitions of ``item-codes``, ``item-attributes`` and ``layouts`` that this host holds, up
to their ends at the start.

What must hold: it is what the indexer would have made, offsets included, so that an indexer goes on from it; a rebuild that
does not come to its end leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from confluent_kafka import Consumer, Message

from models.bundles.bundle import Bundle
from models.directories import require_writable_directory
from models.errors import SidstreamError
from models.sids.layout import Layout
from store.checks.backup import has_index
from store.files.environment import DATA_FILE, LOCK_FILE, writer_of
from store.writing.writer import IndexWriter
from streamer.events.layouts import layout_of
from streamer.indexer.attributes import AttributesReader, attributes_batch
from streamer.indexer.codes import codes_batch, layout_record
from streamer.indexer.held import held_places
from streamer.indexer.log_watch import require_same_logs, watched_topics
from streamer.kafka.admin import require_usable
from streamer.kafka.partition_watch import topic_states
from streamer.kafka.read_to_end import Reading, Span, end_reader, partitions_of, read_spans, watermarks
from streamer.settings import Settings

# As an indexer that is far behind: random ids touch a page each unless a page gets several (``batch_sizes``).
_BATCH_RECORDS: Final = 200_000


class RebuildError(SidstreamError):
    """There is no room for a fresh index; nothing was changed."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """A finished rebuild; ``position``: the next offset per ``topic/partition``, ``records``: those that were read."""

    index: str
    items: int
    records: int
    seconds: float
    generation: int | None
    position: dict[str, int]
    digest: str


def require_room(directory: Path) -> None:
    """Return if a fresh index may be made in ``directory``.

    Raises:
        DirectoryError: it cannot be made or written to.
        RebuildError: a writer runs on it, or it holds something.
    """
    require_writable_directory(directory)
    if writer := writer_of(directory):
        raise RebuildError(
            f"the indexer (process {writer}) writes {directory}: build the fresh index beside it with --into DIR, and put it "
            "in its place afterwards"
        )
    if has_index(directory):
        raise RebuildError(
            f"{directory} is not empty and is left as it is: build into another directory with --into DIR, or move this "
            "one away first"
        )


def rebuild(
    settings: Settings, into: Path, *, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Rebuilt:
    """Build the index of the settings' bundle and topics in the empty directory ``into``.

    ``progress`` hears how many offsets of how many are done. Position and content are those of an indexer that has read as
    far; where a topic ends in something that is no record, the position is the end itself.

    Raises:
        RebuildError: ``into`` is in use or not empty, or the topics hold more than ``indexer.maximum_items``.
        IndexerError: a record that does not belong to the bundle, or a topic that was made anew meanwhile.
    """
    require_room(into)
    layout = Bundle.open(settings.bundle).layout
    topics = (settings.topics.item_codes, settings.topics.item_attributes, settings.topics.layouts)
    require_usable(settings, topics)
    started = time.monotonic()
    consumer = end_reader(settings, "rebuild")
    made = not into.exists()
    try:
        before = _log_ids(settings)
        places = held_places(settings, partial(partitions_of, consumer))
        spans = {place: Span(*watermarks(consumer, *place)) for place in places}
        with IndexWriter.open(
            into,
            codebook_id=layout.codebook_id,
            layers=layout.layers,
            size=layout.size,
            order=settings.indexer.order,
            partitions=settings.indexer.partitions,
        ) as writer:
            try:
                writer.remember_log_ids(before)
                writer.remember_partition_count(len(partitions_of(consumer, settings.topics.item_codes)))
                records = _fill(settings, writer, layout, consumer, spans, progress)
                require_same_logs(settings, before, _log_ids(settings), f"the fresh index {into}")
                with writer.snapshot() as snapshot:
                    _require_within(settings, snapshot.item_count, writer.waiting_attributes())
                    live = snapshot.live_layout()
                    return Rebuilt(
                        index=str(into),
                        items=snapshot.item_count,
                        records=records,
                        seconds=time.monotonic() - started,
                        generation=live.generation if live is not None else None,
                        position={f"{topic}/{number}": at for (topic, number), at in snapshot.position.items()},
                        digest=snapshot.digest(),
                    )
            except BaseException:
                _remove(into, made)
                raise
    finally:
        consumer.close()


def _require_within(settings: Settings, items: int, waiting: int) -> None:
    """``waiting``: ids that have attributes and no item."""
    maximum = settings.indexer.maximum_items
    nulls = (
        f"take attributes away from those whose items will not come (a null value in {settings.topics.item_attributes})"
    )
    for found, what, instead in (
        (items, "items", "delete items"),
        (waiting, "ids with attributes and no item", nulls),
    ):
        if maximum and found > maximum:
            raise RebuildError(
                f"the topics hold {found:,} {what}, indexer.maximum_items allows {maximum:,}: raise it, or {instead}; nothing "
                "was kept of the fresh index"
            )


def _log_ids(settings: Settings) -> dict[str, str]:
    states = topic_states(settings.kafka, watched_topics(settings))
    return {topic: state.topic_id for topic, state in states.items()}


def _fill(
    settings: Settings,
    writer: IndexWriter,
    layout: Layout,
    consumer: Consumer,
    spans: dict[tuple[str, int], Span],
    progress: Callable[[int, int], None],
) -> int:
    """How many records there were."""
    writer.put_layout(layout, {})
    positions = {at: span.first for at, span in spans.items()}
    total, records = sum(map(len, spans.values())), 0
    attributes = AttributesReader(settings.attributes)
    progress(0, total)
    for reading in read_spans(consumer, spans, size=_BATCH_RECORDS):
        _apply(settings, writer, layout, attributes, reading)
        positions |= reading.positions
        records += len(reading.records)
        progress(sum(positions[at] - span.first for at, span in spans.items()), total)
    # Of a partition that holds no record any more, too: counts carry the sum of positions, and it must not fall.
    writer.apply(codes_batch([], layout), positions)
    return records


def _apply(
    settings: Settings, writer: IndexWriter, layout: Layout, attributes: AttributesReader, reading: Reading
) -> None:
    by_topic: dict[str, list[Message]] = {}
    for record in reading.records:
        by_topic.setdefault(record.topic(), []).append(record)
    for record in by_topic.get(settings.topics.layouts, []):
        if (issued := layout_record(record, layout.codebook_id)) is not None:
            writer.put_layout(layout_of(issued), {})
    if alone := by_topic.get(settings.topics.item_attributes):
        # What cannot be used is a dead letter of the indexer's already.
        writer.apply_attributes(attributes_batch(attributes.read(alone).updates), {})
    writer.apply(codes_batch(by_topic.get(settings.topics.item_codes, []), layout), reading.positions)


def _remove(directory: Path, made: bool) -> None:
    """What this rebuild has made, and nothing else."""
    for name in (DATA_FILE, "lock.mdb", LOCK_FILE):
        (directory / name).unlink(missing_ok=True)
    if made:
        with contextlib.suppress(OSError):
            directory.rmdir()
