"""Dead letters on a real broker: read safely, replayed verbatim and exactly once, and never over a newer state."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from streamer.dead_letters.old_progress import CARRIED_OVER
from streamer.dead_letters.plan import Choice
from streamer.dead_letters.reading import (
    REPLAYED_HEADER,
    Place,
    find_letters,
    read_letters,
)
from streamer.dead_letters.replay import Replay, ReplayError, ReplayOutcome
from streamer.kafka.clients import consumer_configuration
from streamer.kafka.read_to_end import end_reader, watermarks
from streamer.settings import Settings
from support.letters import refuse, run, seen, send, updates
from support.processes import SidstreamProcess, committed_records
from support.unreadable_headers import send_unreadable_header

DAY_MS = 86_400_000
NOW = int(time.time() * 1000)


def replay(settings: Settings, topic: str | None = None, *, now_ms: int | None = None, **choice: Any) -> ReplayOutcome:
    with Replay.open(settings, [topic or settings.topics.item_updates_dead_letters]) as replaying:
        return replaying.send(replaying.plan(Choice(**choice), now_ms=now_ms))


def reasons(outcome: ReplayOutcome) -> list[str]:
    return [reason for _, reason in outcome.skipped]


def test_originals_are_sent_verbatim_to_their_partition_once_and_again_only_if_asked(
    pipeline_settings: Settings,
) -> None:
    settings = pipeline_settings
    headers = [("ce_specversion", b"1.0"), ("trace", b"\x00\xff"), ("trace", b"two")]
    send(
        settings,
        {"key": b"a", "value": b"{", "headers": headers, "timestamp": NOW - 5_000, "partition": 3},
        {"key": b"", "value": b"no id", "partition": 2},
        {"key": b"\xff", "value": None, "partition": 0},
    )
    refuse(settings, *updates(settings))
    assert replay(settings).sent == 3
    again = [record for record in updates(settings) if REPLAYED_HEADER in dict(record.headers() or [])]
    assert Counter((one.partition(), one.key(), one.value()) for one in again) == Counter(
        [(3, b"a", b"{"), (2, b"", b"no id"), (0, b"\xff", None)]
    )
    [one] = [record for record in again if record.key() == b"a"]
    assert one.headers() == [*headers, (REPLAYED_HEADER, b"0")]
    assert one.timestamp()[1] == NOW - 5_000

    repeated = replay(settings)
    assert (repeated.sent, repeated.plan.done_before) == (0, 3)
    assert len(updates(settings)) == 6
    assert replay(settings, again=True).sent == 3
    assert len(updates(settings)) == 9
    assert replay(settings).sent == 0


def test_letters_that_a_filter_leaves_out_are_replayed_later(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    send(settings, *[{"key": b"%d" % n, "value": b"%d" % n} for n in range(6)])
    records = updates(settings)
    for number, record in enumerate(records):
        refuse(settings, record, kind="A" if number % 2 else "B")

    assert replay(settings, kinds=frozenset({"A"}), limit=2).sent == 2
    assert replay(settings, kinds=frozenset({"A"})).sent == 1
    third = next(
        letter for letter in read_letters(settings, [settings.topics.item_updates_dead_letters]) if letter.key == b"2"
    )
    assert replay(settings, places=(third.place,)).sent == 1
    source = third.source
    assert source is not None
    assert replay(settings, places=(Place(source.topic, source.partition, source.offset),)).sent == 0
    assert seen(updates(settings)[6:]) == [(b"%d" % n, b"%d" % n) for n in (1, 3, 5, 2)]
    assert replay(settings).sent == 2
    assert seen(updates(settings)[10:]) == [(b"0", b"0"), (b"4", b"4")]
    assert replay(settings, kinds=frozenset({"A"}), again=True, limit=1).sent == 1
    # Of the letters that --again asked for once more, two were left by the limit: they are to be sent.
    assert replay(settings).sent == 2


def test_dry_run_sends_nothing_and_notes_nothing(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    send(settings, {"key": b"a", "value": b"{"})
    refuse(settings, *updates(settings))
    with Replay.open(settings, [settings.topics.item_updates_dead_letters]) as replaying:
        plan = replaying.plan(Choice(), dry_run=True)
    assert [letter.key for letter in plan.chosen] == [b"a"]
    assert len(updates(settings)) == 1
    assert replay(settings).sent == 1


@pytest.mark.parametrize("newer", [b'{"embedding": []}', None], ids=["update", "deletion"])
def test_letter_is_left_if_its_item_has_changed_since_unless_told_to_overwrite(
    pipeline_settings: Settings, newer: bytes | None
) -> None:
    settings = pipeline_settings
    send(settings, {"key": b"a", "value": b"old"}, {"key": b"b", "value": b"alone"})
    refuse(settings, *updates(settings))
    send(settings, {"key": b"a", "value": newer}, {"key": b"a", "value": b"elsewhere", "partition": 2})
    outcome = replay(settings)
    assert outcome.sent == 1
    [reason] = reasons(outcome)
    assert "out of date" in reason
    assert "newer event of this item at offset 2" in reason
    assert [key for key, _ in seen(updates(settings))].count(b"b") == 2
    assert replay(settings, overwrite=True).sent == 1
    assert [key for key, _ in seen(updates(settings))].count(b"a") == 4


def test_attributes_go_back_to_their_own_topic_with_their_time_unless_newer_ones_are_there(
    pipeline_settings: Settings,
) -> None:
    """What an update of the same item says since then puts them out of date no more than the other way round."""
    settings = pipeline_settings
    attributes, letters = settings.topics.item_attributes, settings.topics.item_attributes_dead_letters
    send(
        settings, {"key": b"a", "value": b"1", "timestamp": NOW - 5_000}, {"key": b"b", "value": b"2"}, topic=attributes
    )
    refuse(settings, *committed_records(settings, attributes), stage="indexer")
    send(settings, {"key": b"b", "value": None}, topic=attributes)
    send(settings, *[{"key": b"a", "value": b"update"}] * 3)
    outcome = replay(settings, letters)
    assert outcome.sent == 1
    assert f"{attributes}/1 has a newer event of this item at offset 2" in reasons(outcome)[0]
    again = committed_records(settings, attributes)[-1]
    assert (again.key(), again.value(), again.timestamp()[1]) == (b"a", b"1", NOW - 5_000)


def test_letters_of_one_item_are_replayed_in_order_and_one_does_not_put_the_other_out_of_date(
    pipeline_settings: Settings,
) -> None:
    settings = pipeline_settings
    send(settings, *[{"key": b"a", "value": b"%d" % n} for n in range(3)])
    first = updates(settings)
    refuse(settings, *first)
    assert replay(settings, limit=1).sent == 1
    # The replayed oldest is on the topic behind the two others, and as old as it always was.
    assert replay(settings).sent == 2
    assert [value for _, value in seen(updates(settings))] == [b"0", b"1", b"2"] * 2
    # All three were refused again: still in order, and nothing is younger than the last.
    refuse(settings, *updates(settings)[3:])
    assert replay(settings).sent == 3
    assert [value for _, value in seen(updates(settings))] == [b"0", b"1", b"2"] * 3
    # Now the last was taken: whatever is asked, only it may come again.
    outcome = replay(settings, again=True)
    assert outcome.sent == 2
    assert len(reasons(outcome)) == 4


def test_letter_older_than_tombstones_stay_is_left(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    send(settings, {"key": b"a", "value": b"old"})
    refuse(settings, *updates(settings))
    outcome = replay(settings, now_ms=NOW + 8 * DAY_MS)
    assert outcome.sent == 0
    assert "8 days old" in reasons(outcome)[0]
    assert replay(settings, now_ms=NOW + 8 * DAY_MS, overwrite=True).sent == 1


def test_event_too_large_for_a_letter_is_fetched_from_its_source_and_left_if_that_is_gone(
    pipeline_settings: Settings,
) -> None:
    settings = pipeline_settings
    large = b"[" + b"1," * 1_500_000
    send(
        settings,
        {"key": b"small", "value": b"{"},
        {"key": b"large", "value": large, "headers": [("trace", b"x")]},
        compression_type="gzip",
        message_max_bytes=10_000_000,
    )
    small, whole = updates(settings)
    gone = Message(
        topic=settings.topics.item_updates, partition=1, offset=900, key=b"gone", value=large, timestamp=(1, NOW)
    )
    anew = Message(
        topic=settings.topics.item_updates, partition=1, offset=0, key=b"small", value=large, timestamp=(1, NOW - 1)
    )
    refuse(settings, whole, small, gone, anew, kind="EventTooLarge")
    letters = list(read_letters(settings, [settings.topics.item_updates_dead_letters]))
    assert [bool(letter.omitted) for letter in letters] == [True, False, True, True]
    assert letters[0].value is None
    outcome = replay(settings)
    assert outcome.sent == 2
    assert all("no longer has the original" in reason for reason in reasons(outcome))
    assert len(reasons(outcome)) == 2
    assert seen(updates(settings)[2:]) == [(b"large", large), (b"small", b"{")]
    assert updates(settings)[2].headers() == [("trace", b"x"), (REPLAYED_HEADER, b"1")]


def test_original_that_the_topic_does_not_take_is_left_and_the_others_are_sent(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    noise = random.Random(1).randbytes(2 * 1024 * 1024 - 88)  # just fits as it came; our header makes it too large
    send(
        settings,
        {"key": b"a", "value": b"1"},
        {"key": b"noise", "value": noise},
        {"key": b"b", "value": b"2"},
        message_max_bytes=2 * 1024 * 1024 + 1_000,
    )
    refuse(settings, *updates(settings))
    keyless = [
        ("dlq.errors.topic", settings.topics.item_updates.encode()),
        ("dlq.errors.partition", b"1"),
        ("dlq.errors.offset", b"1"),
    ]
    send(
        settings,
        {"value": b"x", "headers": keyless, "partition": 0},
        topic=settings.topics.item_updates_dead_letters,
    )
    outcome = replay(settings, overwrite=True)
    assert outcome.sent == 2
    assert seen(updates(settings)[3:]) == [(b"a", b"1"), (b"b", b"2")]
    assert {letter.key for letter, _ in outcome.skipped} == {b"noise", None}
    assert all("does not take it" in reason for reason in reasons(outcome))


def test_letters_that_did_not_come_from_here_are_left(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    topic = settings.topics.item_updates_dead_letters
    forged = [
        ("dlq.errors.topic", settings.topics.layouts.encode()),
        ("dlq.errors.partition", b"0"),
        ("dlq.errors.offset", b"0"),
    ]
    beyond = [("dlq.errors.topic", settings.topics.item_updates.encode()), *forged[1:], ("dlq.errors.partition", b"77")]
    send(
        settings,
        {"key": b"a", "value": b"x", "headers": forged, "partition": 0},
        {"key": b"a", "value": b"x", "partition": 0},
        {"key": b"a", "value": b"x", "headers": beyond, "partition": 0},
        topic=topic,
    )
    outcome = replay(settings)
    assert outcome.sent == 0
    found = " ".join(reasons(outcome))
    assert "as its source" in found
    assert "no sidstream process wrote it" in found
    assert "no partition 77" in found
    assert committed_records(settings, settings.topics.layouts) == []


def test_event_that_brings_headers_of_a_letter_is_still_known_by_ours(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    forged = [("dlq.errors.topic", b"elsewhere"), ("dlq.errors.offset", b"5"), ("mine", b"1")]
    send(settings, {"key": b"a", "value": b"x", "headers": forged})
    refuse(settings, *updates(settings))
    [letter] = find_letters(settings, Place(settings.topics.item_updates, 1, 0))
    assert letter.headers == (("mine", b"1"),)
    assert replay(settings).sent == 1


def test_second_replay_takes_over_and_the_first_sends_nothing_twice(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    send(settings, *[{"key": b"%d" % n, "value": b"{"} for n in range(5)])
    refuse(settings, *updates(settings))
    with Replay.open(settings, [settings.topics.item_updates_dead_letters]) as first:
        plan = first.plan(Choice())
        assert replay(settings).sent == 5
        with pytest.raises(ReplayError, match="another replay has taken over"):
            first.send(plan)
    assert len(updates(settings)) == 10


def test_replay_killed_over_and_over_sends_every_letter_exactly_once_and_in_order(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    settings, many = pipeline_settings, 4_000
    send(settings, *[{"key": b"%d" % (n % 50), "value": b"%d" % n} for n in range(many)])
    refuse(settings, *updates(settings))
    environment = SidstreamProcess(settings, "assigner", tmp_path)._environment
    dice, kills = random.Random(9), 0

    consumer = end_reader(settings, "test")

    def end() -> int:
        return watermarks(consumer, settings.topics.item_updates, 1)[1]

    while len(updates(settings)) < 2 * many:
        target = end() + dice.randrange(1, 800)
        with subprocess.Popen(
            [sys.executable, "-m", "sidstream", "dlq", "replay"], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None and end() < target:
                time.sleep(0.002)
            if process.poll() is None:
                process.kill()
                kills += 1
            _, errors = process.communicate()
            assert process.returncode in (0, -9), errors
    consumer.close()
    assert kills >= 2
    assert replay(settings).sent == 0
    values = [int(value or b"") for _, value in seen(updates(settings)[many:])]
    assert Counter(values) == Counter(range(many))
    assert values == list(range(many))


def test_headers_that_cannot_be_read_are_said_and_the_other_letters_are_sent(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    """In a letter that someone else wrote, in a tombstone and an update of the source topic, and in an original."""
    settings, topics = pipeline_settings, pipeline_settings.topics
    send(settings, {"key": b"a", "value": b"{"}, {"key": b"b", "value": b"{"}, {"key": b"c", "value": b"{"})
    refuse(settings, *updates(settings))
    send_unreadable_header(settings, topics.item_updates, key="a", partition=1)
    send_unreadable_header(settings, topics.item_updates, key="b", value="{}", partition=1)
    send_unreadable_header(settings, topics.item_updates_dead_letters, key="stranger", value="x")
    refuse(settings, updates(settings)[-1], kind="UndecodableHeaders")

    listed = run(settings, tmp_path, "dlq", "list")
    assert listed.returncode == 0, listed.stderr
    assert "cannot be read" in listed.stdout
    outcome = replay(settings)
    assert outcome.sent == 2
    assert seen(updates(settings))[-2:] == [(b"b", b"{"), (b"c", b"{")]
    left = {letter.key: reason for letter, reason in outcome.skipped if letter.key != b"b"}
    assert "out of date" in left[b"a"]
    assert "the headers of this letter cannot be read" in left[b"stranger"]
    of_b = [reason for letter, reason in outcome.skipped if letter.key == b"b"]
    # The newer update of b was refused itself, so it does not put the older one out of date.
    assert len(of_b) == 1
    assert "headers cannot be sent as they were" in of_b[0]


@pytest.mark.parametrize("position", [2, 0], ids=["with letters left", "another tool has set the offset"])
def test_replay_of_an_older_sidstream_is_carried_over_once_and_nothing_is_sent_twice(
    pipeline_settings: Settings, position: int
) -> None:
    settings, letters = pipeline_settings, pipeline_settings.topics.item_updates_dead_letters
    send(settings, *[{"key": b"%d" % n, "value": b"%d" % n} for n in range(8)])
    refuse(settings, *updates(settings))
    group = f"{settings.topics.prefix}sidstream-dead-letter-replay"
    # Written by that sidstream: of the letters below 7, those at 2 and 5 are left.
    metadata = "1:5:c-qSV003zKX#" if position else ""
    with closing(Consumer(consumer_configuration(settings.kafka, group=group))) as consumer:
        offsets = [TopicPartition(letters, 0, position or 7, metadata=metadata)]
        consumer.commit(offsets=offsets, asynchronous=False)
        with Replay.open(settings, [letters]) as replaying:
            dry = replaying.plan(Choice(), dry_run=True)
        left = [b"2", b"5", b"7"] if position else [b"7"]
        assert [letter.key for letter in dry.chosen] == left
        assert replay(settings, limit=1).sent == 1
        [found] = consumer.committed([TopicPartition(letters, 0)], timeout=20)
        assert (found.offset, found.metadata) == (0, CARRIED_OVER)
        assert replay(settings).sent == len(left) - 1
        assert replay(settings).plan.done_before == 8
        assert [key for key, _ in seen(updates(settings)[8:])] == left
        # The group's offsets expire; the notes do not.
        notes = committed_records(settings, settings.topics.replayed_dead_letters)
        assert {note.key() for note in notes} == {f"{letters}/0:{n}".encode() for n in range(8)}


def test_query_is_replayed_only_if_asked_and_with_the_time_of_now(pipeline_settings: Settings) -> None:
    settings = pipeline_settings
    queries, letters = settings.topics.queries, settings.topics.queries_dead_letters
    send(settings, {"key": b"q", "value": b"{", "timestamp": NOW - DAY_MS}, topic=queries)
    refuse(settings, *committed_records(settings, queries), stage="retriever")
    assert replay(settings).sent == 0
    assert replay(settings, letters).sent == 1
    [_, again] = committed_records(settings, queries)
    assert again.timestamp()[1] >= NOW
