"""The assigner: item updates in, codes out; exactly once, and an event that cannot be used becomes a dead letter.

An item's codes depend on its embedding and the codebook alone: a batch that is processed again gives the same bytes.
The output partition is the input partition, so the order of one item's updates is kept.
"""

from __future__ import annotations

import threading

from confluent_kafka import Message

from models.bundles.bundle import Bundle
from models.codebooks.onnx_encoder import OnnxEncoder
from streamer.assigner.assign_batch import PROCESS, AssignBatch
from streamer.events.outgoing import Outgoing
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import TopicMismatchError, await_topics, describe
from streamer.kafka.partitioner import PartitionerCheck
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.process.run import collect_garbage_rarely, run_process
from streamer.settings import Settings


def _require_as_many_partitions(settings: Settings) -> int:
    """The partitions of ``item-updates``; ``item-codes`` needs as many: an item's codes go to the partition of its update."""
    topics = settings.topics
    updates, codes = describe(settings.kafka, [topics.item_updates, topics.item_codes])
    if codes.partitions < updates.partitions:
        raise TopicMismatchError(
            f"{codes.name} has {codes.partitions} partitions and {updates.name} has {updates.partitions}: codes go to the "
            f"partition that their update came from, so give {codes.name} {updates.partitions}"
        )
    return updates.partitions


def run_assigner(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        topics, own = settings.topics, settings.assigner
        bundle = Bundle.open(settings.bundle)
        encoder = OnnxEncoder(bundle.encoder_path, threads=own.encoder_threads)
        needed = [topics.item_updates, topics.item_updates_dead_letters, topics.item_codes]
        if not await_topics(settings.kafka, needed, stop, health):
            return
        partitions = _require_as_many_partitions(settings)
        partitioner = PartitionerCheck(topics.item_updates, lambda: partitions)
        assign = AssignBatch(
            encoder,
            codes_topic=topics.item_codes,
            dead_letter_topic=topics.item_updates_dead_letters,
            limits=own,
            norms=bundle.manifest.embedding_norms,
        )
        loop = LoopSettings(
            process=PROCESS,
            source=topics.item_updates,
            group=settings.in_cluster(own.group),
            instance=own.instance,
            batch_size=own.batch_size,
            minimum_batch_interval_ms=own.minimum_batch_interval_ms,
            event_seconds=FRESHNESS_SECONDS.labels(PROCESS),
        )
        collect_garbage_rarely()

        def transform(records: list[Message]) -> list[Outgoing]:
            partitioner.look(records)
            return assign(records)

        TransactionalLoop(loop, settings.kafka, transform, health).run(stop)

    run_process(PROCESS, settings, work)
