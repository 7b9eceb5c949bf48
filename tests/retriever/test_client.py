"""The client on a real broker, with answers written by the test instead of a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from retriever.client import Client, ClientError, slate_rules
from streamer.events.records import ANSWER, Answer
from streamer.filters.slate import SlateRule
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import committed_records, wait_until


def answer_the_next_query(settings: Settings, answered: Sequence[bytes], partition: int) -> bytes:
    """Waits for a query that is not among ``answered``, and answers it into this partition of results; its key."""

    def asked() -> list[bytes]:
        return [record.key() for record in committed_records(settings, settings.topics.queries)]

    wait_until(lambda: len(asked()) > len(answered), what="a query")
    [key] = set(asked()) - set(answered)
    producer = Producer(producer_configuration(settings.kafka))
    value = ANSWER.encode(Answer(query_id=key.decode()))
    producer.produce(settings.topics.results, key=key, value=value, partition=partition)
    assert producer.flush(PATIENCE_SECONDS) == 0
    return bytes(key)


def test_answer_in_a_partition_that_results_got_since_the_client_connected_is_found(
    pipeline_settings: Settings,
) -> None:
    settings, results = pipeline_settings, pipeline_settings.topics.results
    with Client(settings) as client, ThreadPoolExecutor(1) as asking:
        first = asking.submit(client.ask, "kettle", timeout_seconds=PATIENCE_SECONDS)
        answered = [answer_the_next_query(settings, [], 0)]
        assert first.result().query_id.encode() == answered[0]
        admin = AdminClient(client_configuration(settings.kafka))
        admin.create_partitions([NewPartitions(results, 7)])[results].result()
        second = asking.submit(client.ask, "lamp", timeout_seconds=PATIENCE_SECONDS)
        answered.append(answer_the_next_query(settings, answered, 6))
        assert second.result().query_id.encode() == answered[1]


def test_rules_of_a_slate_are_given_as_plain_values_or_refused_before_anything_is_sent() -> None:
    rules = slate_rules([{"per": "brand", "most": 2}, SlateRule(per="prefix", most=1, tokens=2)])
    assert rules == (SlateRule(per="brand", most=2), SlateRule(per="prefix", most=1, tokens=2))
    with pytest.raises(ClientError, match="most"):
        slate_rules([{"per": "brand"}])
    with pytest.raises(ClientError, match="max"):
        slate_rules([{"per": "brand", "most": 1, "max": 3}])
