"""An index that lacks records of its codes topic does not take over; markers and aborted records count for nothing."""

from __future__ import annotations

import numpy as np
import pytest
from confluent_kafka import Producer

from retriever.serving.index_progress import IndexBehindError, IndexGoal
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings

NO_ITEMS = CodesBatch(
    [], np.empty((0, 3), np.uint16), np.empty(0, np.float32), [], np.empty(0, np.int64), np.empty(0, bool)
)


def test_index_that_lacks_a_record_is_behind_and_markers_and_later_records_are_not_waited_for(
    pipeline_settings: Settings,
) -> None:
    settings, topic = pipeline_settings, pipeline_settings.topics.item_codes
    producer = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}test"))
    producer.init_transactions()

    def transaction(count: int, *, commit: bool = True) -> None:
        producer.begin_transaction()
        for number in range(count):
            producer.produce(topic, key=f"item-{number}", value=b"x", partition=0)
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()

    transaction(3)
    transaction(2, commit=False)
    goal = IndexGoal.now(settings, topic)
    transaction(1)
    with (
        IndexWriter.open(settings.index, codebook_id="0123456789abcdef", layers=3, size=16) as writer,
        IndexReader(settings.index) as reader,
    ):
        with pytest.raises(IndexBehindError, match="wait for the indexer of this host"):
            goal.require(settings, reader)
        writer.apply(NO_ITEMS, {(topic, 0): 2})
        with pytest.raises(IndexBehindError):
            goal.require(settings, reader)
        writer.apply(NO_ITEMS, {(topic, 0): 3})
        goal.require(settings, reader)
        with pytest.raises(IndexBehindError, match="behind"):
            IndexGoal.now(settings, topic).require(settings, reader)
