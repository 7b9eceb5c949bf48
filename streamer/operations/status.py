"""What the whole pipeline looks like now: lag of every process, items, layout, census metrics. Reads; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import msgspec
from confluent_kafka import Consumer

from models.sids.census import measure_layer
from store.errors import IndexMissingError, IndexNotUpgradedError
from store.files.environment import writer_of
from store.reading.reader import IndexReader
from streamer.deployments.served import served_on_this_machine, served_settings
from streamer.kafka.admin import TopicDescription, describe, require
from streamer.kafka.groups import Committed, GroupReader, GroupStartingError
from streamer.kafka.read_to_end import Span, end_reader, read_spans, watermarks
from streamer.settings import Settings
from streamer.shards.partitions import holds

_Answer = TypeVar("_Answer")
_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.1
# Up to this gap the records are counted; a transaction's markers take offsets too, so a gap may hold no record at all.
_COUNTED_GAP: Final = 2_000


class _AssignerNote(msgspec.Struct):
    unknown_fields: dict[str, int] = {}


_ASSIGNER_NOTE: Final = msgspec.json.Decoder(_AssignerNote)


class Lag(msgspec.Struct, frozen=True):
    """How many records of ``topic`` a process has still to read, up to the end of the log.

    records: ``None`` when it has never read any and does not run. ``held_back``: those of them that nobody may read yet, as a
    producer's transaction is open before them. ``running``: processes in its group; of the indexer, on this machine.
    """

    process: str
    topic: str
    records: int | None
    held_back: int = 0
    running: int = 0
    waits: bool = False
    """Whether it runs and has never read any, as there is none."""


class LayerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Measures of one layer of the index; ``head_share``: share of the items on the live layout's head tokens, of layer 2."""

    layer: int
    entropy: float
    gini: float
    standard_deviation: float
    head_share: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``sidstream status`` shows."""

    broker: str
    lags: tuple[Lag, ...]
    index: str
    items: int | None = None
    maximum_items: int = 0
    """``indexer.maximum_items``; 0: no limit."""
    split_keys: int = 0
    """Item ids with records in more than one partition of ``item-codes``."""
    partitions: str = ""
    """Those of ``item-codes`` that the index holds; empty: all."""
    index_fault: str | None = None
    """Why an index that is there cannot be read yet: an older sidstream made it."""
    codebook: str | None = None
    last_write: int | None = None
    generation: int | None = None
    head_tokens: int | None = None
    layers: tuple[LayerStatus, ...] = ()
    unknown_fields: dict[str, int] = {}
    """Fields of item updates that the assigner does not know, and how many events had each since its start."""


def read_status(settings: Settings) -> Status:
    """Ask the broker and the index of this machine, of the pipeline that answers."""
    near = served_on_this_machine(settings)
    index, positions = _index(near)  # a damaged one is said without a broker
    settings = served_settings(settings)
    if settings.index != near.index:
        index, positions = _index(settings)
    return _status(settings, index, positions)


def _status(settings: Settings, index: Mapping[str, object], positions: Mapping[tuple[str, int], int] | None) -> Status:
    lags, unknown_fields = _lags(settings, positions, str(index.get("partitions", settings.indexer.partitions)))
    return Status(
        broker=settings.kafka.bootstrap_servers,
        lags=lags,
        unknown_fields=unknown_fields,
        index=str(settings.index),
        maximum_items=settings.indexer.maximum_items,
        **index,  # type: ignore[arg-type]
    )


def status_of(settings: Settings) -> Status:
    """Of one pipeline. ``settings``: its own (``streamer.deployments.pipelines.settings_of``)."""
    return _status(settings, *_index(settings))


def _index(settings: Settings) -> tuple[dict[str, object], Mapping[tuple[str, int], int] | None]:
    """What ``Status`` says of the index, and where that stands; None where there is none to read."""
    index: dict[str, object] = {}
    positions: Mapping[tuple[str, int], int] | None = None
    try:
        with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
            positions = snapshot.position
            layout = snapshot.live_layout()
            census = snapshot.census()
            heads = layout.head_tokens if layout is not None else ()
            layers = []
            for number, counts in enumerate(census, start=1):
                measures = measure_layer(counts, heads if number == 2 else ())
                layers.append(
                    LayerStatus(
                        layer=number,
                        entropy=measures.entropy,
                        gini=measures.gini,
                        standard_deviation=measures.standard_deviation,
                        head_share=measures.head_share,
                    )
                )
            index = {
                "items": snapshot.item_count,
                "split_keys": snapshot.split_keys,
                "partitions": snapshot.partitions,
                "codebook": snapshot.codebook_id,
                "last_write": snapshot.last_commit_at,
                "generation": layout.generation if layout is not None else None,
                "head_tokens": len(heads),
                "layers": tuple(layers),
            }
    except IndexNotUpgradedError as error:
        index = {"index_fault": str(error)}
    except IndexMissingError:
        pass
    return index, positions


def _lags(
    settings: Settings, index_positions: Mapping[tuple[str, int], int] | None, held: str
) -> tuple[tuple[Lag, ...], dict[str, int]]:
    topics = settings.topics
    read = [topics.item_updates, topics.item_codes, topics.item_attributes, topics.token_counts, topics.queries]
    require(settings.kafka, read)
    descriptions = {description.name: description for description in describe(settings.kafka, read)}
    consumer = end_reader(settings, "status")
    try:
        lags, unknown_fields = [], {}
        for process, topic, group in (
            ("assigner", topics.item_updates, settings.in_cluster(settings.assigner.group)),
            ("monitor", topics.token_counts, settings.monitor_app_id),
            ("retriever", topics.queries, settings.retriever_group),
        ):
            committed, running = group_now(settings, group, topic, descriptions[topic].partitions)
            # A process that has just started reads from the beginning.
            positions = {partition: at.offset for partition, at in committed.items()} if committed or running else None
            lags.append(_lag(consumer, process, descriptions[topic], positions, running))
            if process == "assigner":
                unknown_fields = unknown_fields_of(at.metadata for at in committed.values())
        running = 1 if index_positions is not None and writer_of(settings.index) else 0
        for place, topic in enumerate((topics.item_codes, topics.item_attributes), start=1):
            of_index = _of_topic(index_positions, topic)
            description = replace(descriptions[topic], offsets=held_offsets(descriptions[topic].offsets, held))
            lags.insert(place, _lag(consumer, "indexer", description, of_index, running))
        return tuple(lags), unknown_fields
    finally:
        consumer.close()


def group_now(settings: Settings, group: str, topic: str, partitions: int) -> tuple[dict[int, Committed], int]:
    """What a group has committed of a topic, by partition, and how many processes are in it."""
    with GroupReader(settings.kafka, group) as reader:
        return _patient(partial(reader.committed, topic, range(partitions))), _patient(reader.members)


def _of_topic(positions: Mapping[tuple[str, int], int] | None, topic: str) -> dict[int, int] | None:
    if positions is None:
        return None
    return {partition: offset for (name, partition), offset in positions.items() if name == topic}


def _patient(ask: Callable[[], _Answer]) -> _Answer:
    """The answer of a coordinator, which may have just started."""
    give_up = time.monotonic() + _SECONDS
    while True:
        try:
            return ask()
        except GroupStartingError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_RETRY_SECONDS)


def unknown_fields_of(metadata: Iterable[str]) -> dict[str, int]:
    """What the assigner notes beside its offsets, a JSON object a partition: ``{"unknown_fields": {name: events}}``.

    A process notes the same counts beside each of its partitions, as of the last batch there: the newest are the greatest.
    """
    counts: dict[str, int] = {}
    for text in metadata:
        try:
            found = _ASSIGNER_NOTE.decode(text).unknown_fields
        except (msgspec.DecodeError, UnicodeError):  # none, or another program's
            continue
        for name, events in found.items():
            counts[name] = max(events, counts.get(name, 0))
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _lag(
    consumer: Consumer, process: str, topic: TopicDescription, positions: Mapping[int, int] | None, running: int
) -> Lag:
    if positions is None:
        return Lag(process, topic.name, None, running=running)
    records, held_back = records_left(consumer, topic.name, topic.offsets, positions)
    never_read = not any(positions.values())
    return Lag(process, topic.name, records, held_back, running, waits=bool(running) and never_read and not records)


def held_offsets(offsets: Sequence[tuple[int, int]], held: str) -> tuple[tuple[int, int], ...]:
    """First offset and end of each partition; of those that an index does not hold nothing is left to read."""
    return tuple(ends if holds(held, partition) else (0, 0) for partition, ends in enumerate(offsets))


def records_left(
    consumer: Consumer, topic: str, offsets: Sequence[tuple[int, int]], positions: Mapping[int, int]
) -> tuple[int, int]:
    """Records of a topic from ``positions`` on, and how many of them are held back by an open transaction.

    ``offsets``: first and end of each partition, with what is not committed yet.
    """
    records, held_back, near = 0, 0, {}
    for partition, (low, end) in enumerate(offsets):
        position = max(positions.get(partition, low), low)
        if position >= end:
            continue
        stable = min(end, max(position, watermarks(consumer, topic, partition)[1]))
        held_back += end - stable
        if stable - position > _COUNTED_GAP:
            records += stable - position
        else:
            near[topic, partition] = Span(position, stable)
    records += sum(len(reading.records) for reading in read_spans(consumer, near))
    return records + held_back, held_back
