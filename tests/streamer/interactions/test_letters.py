"""Interactions that cannot be used, on a real broker: dead letters, each exactly once, that the tools of dead letters know."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from store.writing.failpoints import FAILPOINT_VARIABLE, Failpoint
from streamer.client.interactions import InteractionPublisher
from streamer.client.publisher import PublishError
from streamer.dead_letters.plan import Choice
from streamer.dead_letters.reading import DeadLetter, read_letters
from streamer.dead_letters.replay import Replay
from streamer.events.interactions import InteractionIntake
from streamer.interactions import letters as looking
from streamer.interactions.letters import check_interactions
from streamer.kafka.clients import client_configuration, producer_configuration
from streamer.settings import Settings
from support.processes import SidstreamProcess, committed_records

ROOT = Path(__file__).parents[3]


def send(settings: Settings, *records: tuple[bytes | None, Any], partition: int = -1) -> None:
    producer = Producer(producer_configuration(settings.kafka))
    for key, value in records:
        encoded = json.dumps(value).encode() if isinstance(value, dict) else value
        producer.produce(settings.topics.interactions, key=key, value=encoded, partition=partition)
    assert producer.flush(30) == 0


def letters_of(settings: Settings) -> list[DeadLetter]:
    return list(read_letters(settings, [settings.topics.interactions_dead_letters]))


def test_each_record_that_cannot_be_used_becomes_one_letter_however_often_is_looked(
    pipeline_settings: Settings,
) -> None:
    settings = pipeline_settings
    with InteractionPublisher(settings) as publisher:
        for number in range(300):
            publisher.send(f"user-{number % 9}", f"item-{number}", "click")
        with pytest.raises(PublishError, match="is none of view, click"):
            publisher.send("ada", "item-1", "like")  # type: ignore[arg-type]
        with pytest.raises(PublishError, match="trim it"):
            publisher.send("ada", " item-1", "view")
    send(
        settings, (b"ada", {"item": "a", "kind": "like"}), (b"bob", b"no json"), (None, {"item": "a", "kind": "click"})
    )
    first = check_interactions(settings)
    assert (first.records, first.refused) == (303, Counter(InvalidEvent=1, UndecodableEvent=1, EmptyId=1))
    assert check_interactions(settings).records == 0

    send(settings, (b"ada", {"item": "", "kind": "click"}), (b"ada", {"item": "b", "kind": "click"}))
    again = check_interactions(settings)
    assert (again.records, again.refused) == (2, Counter(EmptyId=1))
    found = letters_of(settings)
    assert Counter((one.stage, one.kind, one.key) for one in found) == Counter(
        [
            ("interactions", "InvalidEvent", b"ada"),
            ("interactions", "UndecodableEvent", b"bob"),
            ("interactions", "EmptyId", None),
            ("interactions", "EmptyId", b"ada"),
        ]
    )
    assert {one.source.topic for one in found if one.source} == {settings.topics.interactions}
    assert all(one.message for one in found)


def test_offsets_of_a_look_that_have_expired_bring_no_second_letter(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    send(settings, (b"ada", b"no json"), (b"ada", {"item": "a", "kind": "click"}))
    check_interactions(settings)
    admin = AdminClient(client_configuration(settings.kafka))
    group = settings.in_cluster("sidstream-interactions")
    admin.delete_consumer_groups([group])[group].result()
    send(settings, (b"bob", b"nor this"))
    again = check_interactions(settings)
    assert (again.records, again.refused) == (3, Counter(UndecodableEvent=1))
    assert sorted(one.key or b"" for one in letters_of(settings)) == [b"ada", b"bob"]


def test_look_that_is_killed_anywhere_goes_on_and_writes_each_letter_once(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    settings = pipeline_settings
    deaths = (
        Failpoint.TRANSACTION_BEGUN, Failpoint.OFFSETS_SENT, Failpoint.OUTPUTS_SENT, Failpoint.TRANSACTION_COMMITTED
    )  # fmt: skip
    program = tmp_path / "look.py"
    program.write_text(
        "from streamer.interactions.letters import check_interactions\n"
        "from streamer.settings import load_settings\n"
        "check_interactions(load_settings())\n"
    )
    look = SidstreamProcess(settings, "look", tmp_path, program=program, environment={"PYTHONPATH": str(ROOT)})
    for number, failpoint in enumerate(deaths):
        send(settings, (b"user-%d" % number, b"bad"), (b"user-%d" % number, {"item": "a", "kind": "click"}))
        look.start({FAILPOINT_VARIABLE: f"{failpoint}=1"})
        assert look.wait() == -signal.SIGKILL, look.log()
    assert check_interactions(settings).refused == Counter()
    assert sorted(one.key or b"" for one in letters_of(settings)) == [b"user-%d" % number for number in range(4)]


def test_look_that_another_one_fences_leaves_the_rest_to_it(
    pipeline_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline_settings
    send(settings, *[(b"ada", b"bad %d" % number) for number in range(250)], partition=1)
    others: list[Any] = []
    commit = looking._Look._commit

    def overtaken(self: Any, *arguments: Any) -> None:
        if not others:
            others.append(None)
            others[0] = check_interactions(settings)  # begins while the first has read, and written nothing
        commit(self, *arguments)

    monkeypatch.setattr(looking._Look, "_commit", overtaken)
    first = check_interactions(settings)
    assert first.elsewhere
    assert others[0].refused == Counter(UndecodableEvent=250)
    assert len(letters_of(settings)) == 250


def test_letter_is_replayed_to_where_it_came_from_and_is_an_interaction_then(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    too_long = {"item": "a", "kind": "click", "text": "t" * 3_000}
    send(settings, (b"ada", too_long), partition=2)
    assert check_interactions(settings).refused == Counter(FieldTooLarge=1)
    with Replay.open(settings, [settings.topics.interactions_dead_letters]) as replaying:
        assert replaying.send(replaying.plan(Choice())).sent == 1
    with Replay.open(settings, [settings.topics.interactions_dead_letters]) as replaying:
        assert replaying.send(replaying.plan(Choice())).sent == 0
    roomier = settings.model_copy(
        update={"retriever": settings.retriever.model_copy(update={"maximum_text_characters": 4_000})}
    )
    assert check_interactions(roomier).refused == Counter()
    first, second = committed_records(settings, settings.topics.interactions)
    assert (second.partition(), second.key(), second.value()) == (2, first.key(), first.value())
    assert InteractionIntake(roomier.retriever).read(second).text == "t" * 3_000
