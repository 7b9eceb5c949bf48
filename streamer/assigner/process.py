"""The assigner: item updates in, codes out; exactly once, and an event that cannot be used becomes a dead letter.

An item's codes depend on its id, its embedding and the bundle alone: a batch that is processed again gives the same bytes.
The output partition is the input partition, so the order of one item's updates is kept.
"""

from __future__ import annotations

import threading

from confluent_kafka import Message

from models.bundles.item_encoder import ItemEncoder
from streamer.assigner.assign_batch import PROCESS, AssignBatch
from streamer.deployments.own import OwnPipeline, await_own
from streamer.events.outgoing import Outgoing
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import await_topics
from streamer.kafka.partitioner import PartitionerCheck
from streamer.process.health import Health
from streamer.process.metrics import FRESHNESS_SECONDS
from streamer.process.run import collect_garbage_rarely, run_process
from streamer.registry.reading import formats_of
from streamer.settings import Settings
from streamer.tracing.batches import traces_of


def _remedy(settings: Settings) -> str:
    """What to do when updates or deletions may have been missed, or a log is another one."""
    topics, group = settings.topics, settings.in_cluster(settings.assigner.group)
    return (
        f"Items that were deleted meanwhile may stay in {topics.item_codes}: publish tombstones for them, or make "
        f"{topics.item_codes} and the index anew. To read {topics.item_updates} again from its start, stop every assigner and "
        f"run kafka-consumer-groups --bootstrap-server {settings.kafka.bootstrap_servers} --group {group} --topic "
        f"{topics.item_updates} --reset-offsets --to-earliest --execute. To go on with what there is, start once with "
        "SIDSTREAM_ASSIGNER__ACCEPT_MISSED_UPDATES=true (docs/runbook.md)"
    )


def run_assigner(loaded: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        with await_own(loaded, PROCESS, stop, health) as own:
            if own is not None:
                _assign(own, stop, health)

    run_process(PROCESS, loaded, work, instance=loaded.assigner.instance)


def _assign(pipeline: OwnPipeline, stop: threading.Event, health: Health) -> None:
    settings, bundle = pipeline.settings, pipeline.bundle
    topics, own, beside = settings.topics, settings.assigner, settings.generations
    encoder = ItemEncoder.of(bundle, threads=own.encoder_threads)
    needed = [topics.item_updates, topics.item_updates_dead_letters, topics.item_codes]
    if not await_topics(settings, needed, stop, health):
        return
    partitioner = PartitionerCheck(topics.item_updates, lambda: consuming.partitions)
    group = settings.in_cluster(own.group)
    traces = traces_of("assign", topics.item_updates, group=group)
    assign = AssignBatch(
        encoder,
        codes_topic=topics.item_codes,
        dead_letter_topic=topics.item_updates_dead_letters,
        limits=own,
        attributes=settings.attributes.rules(),
        norms=bundle.manifest.embedding_norms,
        embedding_model=bundle.manifest.embedding_model,
        formats=formats_of(settings, rows=True),
        traces=traces,
    )
    collect_garbage_rarely()

    def transform(records: list[Message]) -> list[Outgoing]:
        outgoing = assign(records)
        partitioner.look(records)  # once a batch: not of one that waits for the schema registry
        return outgoing

    loop = LoopSettings(
        process=PROCESS,
        source=topics.item_updates,
        group=group,
        instance=own.instance,
        batch_size=own.batch_size,
        batch_interval_ms=lambda: pipeline.batch_interval_ms(own.minimum_batch_interval_ms),
        event_seconds=FRESHNESS_SECONDS.labels(PROCESS),
        outputs=(topics.item_codes,),
        every_record=True,
        remedy=_remedy(settings),
        accept_missed=own.accept_missed_updates,
        commit_note=assign.commit_note,
        yields=(beside.catching_up_share, beside.catching_up_batch) if pipeline.is_beside() else None,
    )
    consuming = TransactionalLoop(loop, settings.kafka, transform, health, traces=traces)
    consuming.run(stop)
