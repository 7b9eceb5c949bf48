"""What `status` tells of each process: how much it has to read, what holds it back, and whether it is there at all."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Producer

from streamer.kafka.clients import producer_configuration
from streamer.operations.status import Lag, read_status, unknown_fields_of
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, wait_until


def lag_of(settings: Settings, process: str) -> Lag:
    [lag] = [lag for lag in read_status(settings).lags if lag.process == process]
    return lag


def test_assigner_that_never_ran_one_that_waits_for_its_first_record_and_one_that_is_gone_are_told_apart(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    topic = settings.topics.item_updates
    assert lag_of(settings, "assigner") == Lag("assigner", topic, None)
    with SidstreamProcess(settings, "assigner", tmp_path):
        waiting = Lag("assigner", topic, 0, running=1, waits=True)
        wait_until(lambda: lag_of(settings, "assigner") == waiting, what="a waiting assigner", every=0.3)
        producer = Producer(producer_configuration(settings.kafka))
        producer.produce(topic, key=b"a", value=b"{")
        assert producer.flush(PATIENCE_SECONDS) == 0
        done = Lag("assigner", topic, 0, running=1)
        wait_until(lambda: lag_of(settings, "assigner") == done, what="a record that was read", every=0.3)
    gone = Lag("assigner", topic, 0, running=0)
    wait_until(lambda: lag_of(settings, "assigner") == gone, what="an assigner that is gone", every=0.3)


def test_records_behind_an_open_transaction_are_counted_and_said_to_be_held_back(
    pipeline_settings: Settings, tiny_bundle: Path, tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    topic = settings.topics.item_updates
    with SidstreamProcess(settings, "assigner", tmp_path):
        plain = Producer(producer_configuration(settings.kafka))
        open_one = Producer(producer_configuration(settings.kafka, transactional_id=f"{settings.topics.prefix}open"))
        open_one.init_transactions(20)
        plain.produce(topic, key=b"read", value=b"{", partition=0)
        assert plain.flush(PATIENCE_SECONDS) == 0
        open_one.begin_transaction()
        for number in range(3):
            open_one.produce(topic, key=b"held %d" % number, value=b"{", partition=0)
        assert open_one.flush(PATIENCE_SECONDS) == 0
        for number in range(15):
            plain.produce(topic, key=b"behind %d" % number, value=b"{", partition=0)
        assert plain.flush(PATIENCE_SECONDS) == 0
        held = Lag("assigner", topic, 18, held_back=18, running=1)
        wait_until(lambda: lag_of(settings, "assigner") == held, what="18 records held back", every=0.3)
        open_one.commit_transaction(20)
        done = Lag("assigner", topic, 0, running=1)
        wait_until(lambda: lag_of(settings, "assigner") == done, what="all of them read", every=0.3)


def test_unknown_fields_are_those_of_the_newest_notes_and_what_is_none_is_left_out() -> None:
    notes = [
        "",
        "1:5:c-qSV003zKX#",
        '{"at": 5, "unknown_fields": {"colour": 3}}',
        '{"at": 9, "unknown_fields": {"colour": 7, "size": 12}, "later": true}',
        '{"at": 9}',
        '{"unknown_fields": ["colour"]}',
        "null",
    ]
    assert unknown_fields_of(notes) == {"size": 12, "colour": 7}
    assert unknown_fields_of([]) == {}
