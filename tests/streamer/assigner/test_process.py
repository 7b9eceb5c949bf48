"""The assigner as a process on the real broker: what it refuses, what it takes, and what ``status`` then knows of its senders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from numpy.typing import NDArray

from streamer.events.records import ITEM_CODES
from streamer.kafka.clients import producer_configuration
from streamer.operations.status import read_status
from streamer.settings import Settings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, wait_until


def test_foreign_updates_are_letters_that_help_and_unknown_fields_are_stated_by_status(
    pipeline_settings: Settings, tiny_bundle: Path, tiny_embeddings: NDArray[Any], tmp_path: Path
) -> None:
    settings = pipeline_settings.model_copy(update={"bundle": tiny_bundle})
    topics, row = settings.topics, tiny_embeddings[0]
    plain = {"embedding": row.tolist()}
    structured = {"specversion": "1.0", "id": "1", "source": "shop", "type": "item", "data": plain}
    producer = Producer(producer_configuration(settings.kafka))
    sent: list[tuple[bytes, bytes | None, list[tuple[str, str | bytes | None]]]] = [
        (b"usual", json.dumps(plain).encode(), []),
        (b"misspelt", json.dumps({**plain, "titel": "Kettle"}).encode(), []),
        (b"misspelt-2", json.dumps({**plain, "titel": "Pot"}).encode(), []),
        (b"structured", json.dumps(structured).encode(), [("content-type", b"application/cloudevents+json")]),
        (b"tombstone", b"null", []),
        (b"framed", b"\x00\x00\x00\x00\x07" + json.dumps(plain).encode(), []),
        ((5).to_bytes(8), json.dumps(plain).encode(), []),
        (b'"quoted"', None, []),
        (b"seconds", json.dumps({**plain, "updated_at": 1_767_323_045}).encode(), []),
        (b"zero", json.dumps({"embedding": [0.0] * len(row)}).encode(), []),
    ]
    for key, value, headers in sent:
        producer.produce(topics.item_updates, key=key, value=value, headers=headers)
    assert producer.flush(PATIENCE_SECONDS) == 0

    with SidstreamProcess(settings, "assigner", tmp_path) as assigner:
        wait_until(
            lambda: len(committed_records(settings, topics.item_updates_dead_letters)) == 6,
            what="six dead letters",
            every=0.5,
        )
        wait_until(lambda: len(committed_records(settings, topics.item_codes)) == 4, what="four items", every=0.5)
        assert read_status(settings).unknown_fields == {"titel": 2}
        assert assigner.stop() == 0
    codes = {
        record.key(): ITEM_CODES.decode(record.value()) for record in committed_records(settings, topics.item_codes)
    }
    assert codes.keys() == {b"usual", b"misspelt", b"misspelt-2", b"structured"}
    assert len({one.codes for one in codes.values()}) == 1, "one embedding, whatever carried it"
    letters = {
        record.key(): dict(record.headers() or [])
        for record in committed_records(settings, topics.item_updates_dead_letters)
    }
    said = {
        key: (found["dlq.errors.class"].decode(), found["dlq.errors.message"].decode())
        for key, found in letters.items()
    }
    assert {key: kind for key, (kind, _) in said.items()} == {
        b"tombstone": "UndecodableEvent",
        b"framed": "UndecodableEvent",
        (5).to_bytes(8): "InvalidId",
        b'"quoted"': "InvalidId",
        b"seconds": "InvalidEvent",
        b"zero": "EmbeddingZero",
    }
    assert "send a null value" in said[b"tombstone"][1]
    assert "schema registry" in said[b"framed"][1]
    assert "8-byte integer, 5" in said[(5).to_bytes(8)][1]
    assert "looks like seconds" in said[b"seconds"][1]
