"""The retriever's process: queries in, answers out; one answer a query, results and offsets in one transaction.

The record ``serving`` says what answers, and it changes between two batches; before anything was deployed that is the settings'
bundle over the settings' index.
"""

from __future__ import annotations

import threading

from retriever.answering.metrics import QUERY_SECONDS
from retriever.serving.answer_batch import PROCESS, AnswerBatch
from retriever.serving.bundles import BundlesOfRecord
from streamer.deployments.follow import await_follower
from streamer.exactly_once.loop import LoopSettings, TransactionalLoop
from streamer.kafka.admin import await_topics
from streamer.process.health import Health
from streamer.process.run import run_process
from streamer.registry.reading import formats_of
from streamer.settings import Settings
from streamer.tracing.batches import traces_of


def run_retriever(settings: Settings) -> None:
    """Run the process until it is told to stop."""

    def work(stop: threading.Event, health: Health) -> None:
        topics, own = settings.topics, settings.retriever
        needed = [topics.queries, topics.queries_dead_letters, topics.results, topics.serving]
        if not await_topics(settings, needed, stop, health):
            return
        follower = await_follower(settings, PROCESS, stop, health)
        if follower is None:
            return
        with follower:
            bundles = BundlesOfRecord(settings, follower, health)
            if not bundles.start(stop):
                return
            traces = traces_of("answer", topics.queries, group=settings.retriever_group)
            with bundles:
                transform = AnswerBatch(
                    bundles.current,
                    settings=own,
                    results_topic=topics.results,
                    dead_letter_topic=topics.queries_dead_letters,
                    filterable=settings.attributes.filterable,
                    partitions=settings.indexer.partitions,
                    formats=formats_of(settings),
                    traces=traces,
                )
                loop = LoopSettings(
                    process=PROCESS,
                    source=topics.queries,
                    group=settings.retriever_group,
                    instance=own.instance,
                    batch_size=own.batch_size,
                    batch_interval_ms=lambda: 0.0,
                    event_seconds=QUERY_SECONDS,
                    gather_size=own.gather_size,
                )
                TransactionalLoop(loop, settings.kafka, transform, health, transform.next_batch, traces).run(stop)

    run_process(PROCESS, settings, work, instance=settings.retriever.instance)
