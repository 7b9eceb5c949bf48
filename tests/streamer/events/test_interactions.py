"""From a raw record to an interaction, or to the reason why it cannot be used; judged by itself and the broker's time alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message

from streamer.events.intake import EventError
from streamer.events.interactions import CLOCKS_APART_MS, CheckedInteraction, InteractionIntake
from streamer.settings.retriever import RetrieverSettings

HEARD = 1_767_323_045_000
SAID: dict[str, Any] = {"item": "sku-1", "kind": "click"}


def read(value: Any, *, key: bytes | None = b"ada", **more: Any) -> CheckedInteraction:
    encoded = json.dumps(value).encode() if isinstance(value, dict) else value
    record = Message(topic="interactions", key=key, value=encoded, partition=0, offset=1, timestamp=(2, HEARD), **more)
    return InteractionIntake(RetrieverSettings()).read(record)


def refused(value: Any, **more: Any) -> EventError:
    with pytest.raises(EventError) as caught:
        read(value, **more)
    return caught.value


def test_interaction_is_read_with_every_field_and_without_the_optional_ones() -> None:
    whole = {**SAID, "user": "ada", "query": "q1", "text": "kettle", "at": HEARD - 5}
    assert read(whole) == CheckedInteraction("ada", "sku-1", "click", HEARD - 5, "q1", "kettle")
    assert read(SAID) == CheckedInteraction("ada", "sku-1", "click", HEARD)
    assert read(msgspec.msgpack.encode(SAID)) == read(SAID)


def test_moment_is_that_of_the_cloud_event_where_the_record_says_none() -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_time", b"2026-01-02T03:04:04Z"), ("ce_type", b"shop.click")]
    assert read(SAID, headers=headers).at == HEARD - 1_000
    assert read({**SAID, "at": HEARD - 7}, headers=headers).at == HEARD - 7


def test_clock_of_the_sender_may_be_a_little_ahead_of_the_brokers() -> None:
    assert read({**SAID, "at": HEARD + CLOCKS_APART_MS}).at == HEARD + CLOCKS_APART_MS
    assert "look at the sender's clock" in str(refused({**SAID, "at": HEARD + CLOCKS_APART_MS + 1}))


@pytest.mark.parametrize(
    ("value", "more", "kind", "said"),
    [
        (SAID, {"key": None}, "EmptyId", "the key is the user id"),
        (SAID, {"key": b"u" * 257}, "IdTooLong", "257"),
        (SAID, {"key": b"\xff"}, "UndecodableId", "UTF-8"),
        (None, {}, "EmptyInteraction", "cannot be taken back"),
        (b"", {}, "EmptyInteraction", "cannot be taken back"),
        (b"click", {}, "UndecodableEvent", ""),
        (b"{}", {}, "InvalidEvent", "without item"),
        ({"item": "sku-1"}, {}, "InvalidEvent", "kind"),
        ({**SAID, "kind": "like"}, {}, "InvalidEvent", "like"),
        ({**SAID, "item": ""}, {}, "EmptyId", "item is empty"),
        ({**SAID, "item": "i" * 257}, {}, "FieldTooLarge", "item has 257 bytes"),
        ({**SAID, "item": "sku-1 "}, {}, "InvalidId", "trim it"),
        ({**SAID, "item": 5}, {}, "InvalidEvent", "item"),
        ({**SAID, "query": ""}, {}, "InvalidEvent", "query is empty"),
        ({**SAID, "query": "q" * 257}, {}, "FieldTooLarge", "query has 257 bytes"),
        ({**SAID, "text": "t" * 2_049}, {}, "FieldTooLarge", "text has 2049 characters"),
        ({**SAID, "user": "bob"}, {}, "ContradictingId", "'bob'"),
        ({**SAID, "at": HEARD // 1_000}, {}, "InvalidEvent", "looks like seconds"),
        ({**SAID, "at": HEARD + 86_400_001}, {}, "InvalidEvent", "ahead"),
        ({**SAID, "at": "now"}, {}, "InvalidEvent", "at"),
        ({**SAID, "price": 3}, {}, "UnknownField", "price"),
        ({**SAID, "text": "x" * 200_000}, {}, "EventTooLarge", "limit"),
        (SAID, {"headers": [("h", b"")] * 65}, "FieldTooLarge", "65 headers"),
        ({**SAID, "record_version": 2}, {}, "UnsupportedVersion", "update sidstream"),
    ],
)
def test_record_that_cannot_be_used_is_refused_by_class_and_reason(
    value: Any, more: dict[str, Any], kind: str, said: str
) -> None:
    error = refused(value, **more)
    assert error.kind == kind
    assert said in str(error)
    assert "delete an item" not in str(error)
