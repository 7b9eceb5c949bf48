"""CloudEvents headers: what we send can be read back, and what others send is checked."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.events.cloudevents import (
    NO_ATTRIBUTES,
    CloudEventError,
    cloud_event_headers,
    event_attributes,
    unwrapped,
)


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
@example(1_001)
def test_time_of_headers_that_we_send_reads_back_to_the_millisecond(at: int) -> None:
    assert event_attributes(cloud_event_headers("answer", identity="1", subject="q", at=at)).time == at


def test_headers_carry_every_required_attribute_of_the_specification() -> None:
    names = {name for name, _ in cloud_event_headers("answer", identity="1", subject="q", at=0)}
    assert {"ce_specversion", "ce_id", "ce_source", "ce_type"} <= names


def test_record_without_headers_is_no_cloudevent_and_fine() -> None:
    assert event_attributes([]) == NO_ATTRIBUTES
    assert event_attributes([("trace", b"1"), ("ce_time", None)]) == NO_ATTRIBUTES


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json; charset=utf-8",
        b"APPLICATION/JSON",
        b"application/msgpack",
        b"application/vnd.shop.item+json",
        b"application/vnd.shop.item+JSON; version=2",
        b"application/vnd.shop.item+msgpack",
        b'application/json;charset="UTF-8"',
        b"text/json",
    ],
)
def test_media_types_of_json_and_messagepack_are_read_whatever_their_parameters(kind: bytes) -> None:
    assert event_attributes([("Content-Type", kind)]) == NO_ATTRIBUTES


@pytest.mark.parametrize(
    "kind", [b"application/msgpack; dtype=float16", b'application/json;charset=utf-8; DType="Float16"']
)
def test_media_type_may_say_the_dtype_of_the_embedding(kind: bytes) -> None:
    assert event_attributes([("content-type", kind)]).dtype == "float16"


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        ("2026-01-01T00:00:00Z", 1_767_225_600_000),
        ("2026-01-01t00:00:00z", 1_767_225_600_000),
        ("2026-01-01 00:00:00z", 1_767_225_600_000),
        ("2026-01-01T01:30:00+01:30", 1_767_225_600_000),
        ("2026-01-01T00:00:00-00:00", 1_767_225_600_000),
        ("2026-01-01T00:00:00.5Z", 1_767_225_600_500),
        ("2026-01-01t00:00:00.123456789z", 1_767_225_600_123),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2016-12-31T23:59:60.25Z", 1_483_228_800_250),
        ("1969-12-31T23:59:59Z", -1_000),
    ],
)
def test_every_form_of_an_rfc_3339_time_is_read(time: str, milliseconds: int) -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_time", time.encode())]
    assert event_attributes(headers).time == milliseconds


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([("content-type", b"text/xml")], "text/xml"),
        ([("content-type", b"image/png")], "image/png.*send application/json or application/msgpack"),
        ([("content-type", b"application/json; charset=utf-16")], "charset 'utf-16'.*UTF-8"),
        ([("content-type", b"application/cloudevents-batch+json")], "cloudevents-batch.*record of its own"),
        ([("content-type", b"application/cloudevents+avro")], "cloudevents.avro"),
        ([("content-encoding", b"gzip")], "content-encoding 'gzip'.*Kafka compresses"),
        ([("ce_specversion", b"0.2")], "0.2"),
        ([("ce_specversion", b"1.0"), ("ce_time", b"yesterday")], "yesterday"),
        ([("ce_specversion", b"1.0"), ("ce_time", b"2026-01-01T00:00:00")], "time zone"),
        ([("ce_specversion", b"1.0"), ("ce_time", b"2026-02-30T00:00:60Z")], "not an RFC 3339"),
        ([("ce_specversion", b"1.0"), ("ce_type", b"sidstream.item-update.v2")], "later version.*update sidstream"),
        ([("ce_specversion", b"1.0"), ("ce_type", b"sidstream.query.v" + b"9" * 5_000)], "later version"),
    ],
)
def test_unusable_headers_are_refused_by_name(headers: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(CloudEventError, match=message):
        event_attributes(headers)


def test_types_of_others_and_of_our_first_version_pass() -> None:
    for type_ in (b"shop.item.v7", b"sidstream.item-update.v1", b"sidstream.item"):
        assert event_attributes([("ce_specversion", b"1.0"), ("ce_type", type_)]) == NO_ATTRIBUTES


def test_structured_cloudevent_is_unwrapped_with_its_time_and_dtype() -> None:
    assert event_attributes([("content-type", b"application/cloudevents+json; charset=utf-8")]).structured
    envelope = {
        "specversion": "1.0", "id": "1", "source": "shop", "type": "item", "time": "2026-01-01t00:00:00z",
        "datacontenttype": "application/json; dtype=float16", "data": {"embedding": "AAA="},
    }  # fmt: skip
    value, attributes = unwrapped(json.dumps(envelope).encode())
    assert json.loads(value) == {"embedding": "AAA="}
    assert attributes[:3] == (1_767_225_600_000, "float16", False)


def test_structured_cloudevent_may_hold_messagepack_in_base64() -> None:
    value, attributes = unwrapped(b'{"specversion": "1.0", "data_base64": "gaF4AQ=="}')
    assert value == b"\x81\xa1x\x01"
    assert attributes == NO_ATTRIBUTES


@pytest.mark.parametrize(
    ("envelope", "message"),
    [
        ({"specversion": "0.3", "data": {}}, "specversion '0.3'"),
        ({"data": {}}, "no structured CloudEvent.*specversion"),
        ({"specversion": "1.0"}, "no data.*send a null value"),
        ({"specversion": "1.0", "data": {}, "datacontenttype": "application/xml"}, "application/xml"),
        ({"specversion": "1.0", "data": {}, "datacontenttype": "application/cloudevents+json"}, "another CloudEvent"),
        ({"specversion": "1.0", "data": {}, "time": "soon"}, "time 'soon'"),
        ({"specversion": "1.0", "data": {}, "type": "sidstream.item-update.v3"}, "later version"),
        ([], "no structured CloudEvent"),
    ],
)
def test_unusable_envelope_is_refused_by_name(envelope: object, message: str) -> None:
    with pytest.raises(CloudEventError, match=message):
        unwrapped(json.dumps(envelope).encode())
