"""Which letters a replay sends: one of a record without a time is as old as the letter itself."""

from __future__ import annotations

import pytest
from confluent_kafka import Message

from streamer.dead_letters.plan import Letter, _out_of_date
from streamer.dead_letters.reading import DeadLetter

DAY_MS = 86_400_000
NOW = 1_767_323_045_000


def letter(recorded_at: int, refused_at: int) -> Letter:
    headers = {
        "dlq.errors.topic": "item-updates", "dlq.errors.partition": "1", "dlq.errors.offset": "7",
        "dlq.errors.timestamp": str(recorded_at), "dlq.errors.class": "InvalidEvent",
    }  # fmt: skip
    record = Message(
        topic="item-updates.dlq",
        partition=0,
        offset=3,
        key=b"sku-1",
        value=b"{}",
        headers=[(name, content.encode()) for name, content in headers.items()],
        timestamp=(1, refused_at),
    )
    return Letter.without_content(DeadLetter.of(record))


@pytest.mark.parametrize(
    ("recorded_at", "refused_at", "old"),
    [
        (-1, NOW - DAY_MS, False),
        (0, NOW - DAY_MS, False),
        (-1, NOW - 8 * DAY_MS, True),
        (NOW - 8 * DAY_MS, NOW - DAY_MS, True),
        (NOW - 2 * DAY_MS, NOW - DAY_MS, False),
    ],
)
def test_letter_of_a_record_without_a_time_is_as_old_as_itself(recorded_at: int, refused_at: int, old: bool) -> None:
    one = letter(recorded_at, refused_at)
    assert one.source is not None
    reason = _out_of_date(one, one.source, {}, NOW)
    assert ("days old" in reason) == old, reason
