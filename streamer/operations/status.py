"""What the whole pipeline looks like now: lag of every process, items, layout, census metrics. Reads; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from models.errors import SidstreamError
from models.sids.census import measure_layer
from store.errors import IndexMissingError
from store.reader import IndexReader
from streamer.events.records import LayerMetrics
from streamer.kafka.admin import describe, require
from streamer.kafka.clients import client_configuration, consumer_configuration
from streamer.kafka.errors import error_text
from streamer.kafka.gather import drain
from streamer.settings import Settings

_SECONDS: Final = 10.0
# Up to this gap the records are counted; a transaction's markers take offsets too, so a gap may hold no record at all.
_COUNTED_GAP: Final = 2_000


class Lag(msgspec.Struct, frozen=True):
    """How many records of ``topic`` a process has still to read; ``None`` when it has never read any."""

    process: str
    topic: str
    records: int | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``sidstream status`` shows."""

    broker: str
    lags: tuple[Lag, ...]
    index: str
    items: int | None = None
    codebook: str | None = None
    last_write: int | None = None
    generation: int | None = None
    head_tokens: int | None = None
    layers: tuple[LayerMetrics, ...] = ()


def read_status(settings: Settings) -> Status:
    """Ask the broker and the index of this machine."""
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
                    LayerMetrics(
                        layer=number,
                        entropy=measures.entropy,
                        gini=measures.gini,
                        standard_deviation=measures.standard_deviation,
                        head_share=measures.head_share,
                    )
                )
            index = {
                "items": snapshot.item_count,
                "codebook": snapshot.codebook_id,
                "last_write": snapshot.last_commit_at,
                "generation": layout.generation if layout is not None else None,
                "head_tokens": len(heads),
                "layers": tuple(layers),
            }
    except IndexMissingError:
        pass
    return Status(
        broker=settings.kafka.bootstrap_servers,
        lags=_lags(settings, positions),
        index=str(settings.index),
        **index,  # type: ignore[arg-type]
    )


def _lags(settings: Settings, index_positions: Mapping[tuple[str, int], int] | None) -> tuple[Lag, ...]:
    topics = settings.topics
    read = [topics.item_updates, topics.item_codes, topics.token_counts, topics.queries]
    require(settings.kafka, read)
    descriptions = {description.name: description for description in describe(settings.kafka, read)}
    consumer = Consumer(
        consumer_configuration(settings.kafka, group=f"{topics.prefix}sidstream-status", enable_partition_eof=True)
    )
    try:
        lags = []
        for process, topic, group in (
            ("assigner", topics.item_updates, topics.prefix + settings.assigner.group),
            ("indexer", topics.item_codes, None),
            ("monitor", topics.token_counts, settings.monitor.app_id),
            ("retriever", topics.queries, topics.prefix + settings.retriever.group),
        ):
            positions = _committed(settings, group, topic) if group is not None else _of_topic(index_positions, topic)
            lags.append(
                Lag(
                    process,
                    topic,
                    None
                    if positions is None
                    else _records_after(consumer, topic, positions, descriptions[topic].offsets),
                )
            )
        return tuple(lags)
    finally:
        consumer.close()


def _of_topic(positions: Mapping[tuple[str, int], int] | None, topic: str) -> dict[int, int] | None:
    if positions is None:
        return None
    return {partition: offset for (name, partition), offset in positions.items() if name == topic}


def _committed(settings: Settings, group: str, topic: str) -> dict[int, int] | None:
    admin = AdminClient(client_configuration(settings.kafka))
    try:
        [answer] = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        found = answer.result(timeout=_SECONDS).topic_partitions
    except KafkaException as error:
        raise SidstreamError(f"cannot read the offsets of group {group}: {error_text(error)}") from error
    offsets = {at.partition: at.offset for at in found if at.topic == topic and at.offset >= 0}
    return offsets or None


def _records_after(
    consumer: Consumer, topic: str, positions: Mapping[int, int], ends: Sequence[tuple[int, int]]
) -> int:
    """Records between positions and ends: counted where the gap is small, else the gap itself."""
    total, near = 0, {}
    for partition, (low, high) in enumerate(ends):
        position = max(positions.get(partition, low), low)
        if high - position > _COUNTED_GAP:
            total += high - position
        elif high > position:
            near[partition] = position
    if near:
        consumer.assign([TopicPartition(topic, partition, position) for partition, position in near.items()])
        unread = set(near)
        while unread:
            records = drain(consumer, 1_000, _SECONDS, lambda end: unread.discard(end.partition()))
            if not records and unread:
                break
            total += len(records)
        consumer.unassign()
    return total
