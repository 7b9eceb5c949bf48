"""CloudEvents headers: what we send can be read back, and what others send is checked."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.events.cloudevents import CloudEventError, cloud_event_headers, event_time


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
@example(1_001)
def test_time_of_headers_that_we_send_reads_back_to_the_millisecond(at: int) -> None:
    assert event_time(cloud_event_headers("answer", identity="1", subject="q", at=at)) == at


def test_headers_carry_every_required_attribute_of_the_specification() -> None:
    names = {name for name, _ in cloud_event_headers("answer", identity="1", subject="q", at=0)}
    assert {"ce_specversion", "ce_id", "ce_source", "ce_type"} <= names


def test_record_without_headers_is_no_cloudevent_and_fine() -> None:
    assert event_time([]) is None
    assert event_time([("trace", b"1")]) is None


@pytest.mark.parametrize("kind", [b"application/json; charset=utf-8", b"APPLICATION/JSON", b"application/msgpack"])
def test_content_type_is_read_without_its_parameters(kind: bytes) -> None:
    assert event_time([("Content-Type", kind)]) is None


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([("content-type", b"text/xml")], "text/xml"),
        ([("ce_specversion", b"0.2")], "0.2"),
        ([("ce_specversion", b"1.0"), ("ce_time", b"yesterday")], "yesterday"),
        ([("ce_specversion", b"1.0"), ("ce_time", b"2026-01-01T00:00:00")], "time zone"),
    ],
)
def test_unusable_headers_are_refused_by_name(headers: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(CloudEventError, match=message):
        event_time(headers)
