"""What the note of a committed offset tells at the next start."""

from __future__ import annotations

import json

import pytest

from streamer.events.topics import TOMBSTONE_RETENTION_MS
from streamer.exactly_once.commit_note import CommitNote, Standing, encode_note, missed, parse_note, replaced_logs

NOW = 1_800_000_000_000
OLD = CommitNote(NOW - TOMBSTONE_RETENTION_MS - 1)


def standing(committed: int | None, note: CommitNote = CommitNote(NOW), first: int = 0, end: int = 100) -> Standing:
    return Standing("item-updates", 2, committed, note, first, end)


def test_note_is_read_as_it_was_written_and_keeps_the_fields_of_the_loop() -> None:
    written = encode_note(NOW, {"item-updates": "an-id"}, {"unknown_fields": {"colour": 3}})
    assert json.loads(written)["unknown_fields"] == {"colour": 3}
    assert parse_note(written) == CommitNote(NOW, {"item-updates": "an-id"})


def test_note_that_would_be_too_large_to_commit_loses_the_fields_of_the_loop_alone() -> None:
    written = encode_note(
        NOW, {"item-updates": "an-id"}, {"unknown_fields": {"x" * 100 + str(n): n for n in range(99)}}
    )
    assert json.loads(written) == {"at": NOW, "logs": {"item-updates": "an-id"}}


@pytest.mark.parametrize("metadata", [None, "", "no JSON", '{"at": "yesterday"}', "[1]"])
def test_offset_without_a_note_of_ours_has_nothing_against_it(metadata: str | None) -> None:
    note = parse_note(metadata)
    assert note == CommitNote()
    assert missed([standing(40, note)], NOW) == []
    assert replaced_logs([standing(40, note)], {"item-updates": "an-id"}) == []


@pytest.mark.parametrize(
    ("at", "start", "sentence"),
    [
        (standing(40, first=50), 50, "10 offsets of item-updates/2 were deleted before they were read"),
        (standing(101), 0, "the group stands at offset 101 of item-updates/2, which ends at 100"),
        (standing(40, OLD), 40, "item-updates/2 was last read 7 days ago"),
    ],
    ids=["start of the log moved on", "log was cut", "away for longer than deletions are kept"],
)
def test_missed_records_are_told(at: Standing, start: int, sentence: str) -> None:
    [told] = missed([at], NOW)
    assert sentence in told
    assert at.start == start


@pytest.mark.parametrize(
    "at",
    [
        standing(None),
        standing(None, first=10),
        standing(100, OLD),
        standing(40),
        standing(50, first=50),
        standing(0, end=0),
    ],
    ids=["new partition", "new with a moved start", "old but nothing came since", "usual", "at the start", "empty"],
)
def test_nothing_missed_is_nothing_told(at: Standing) -> None:
    assert missed([at], NOW) == []


def test_log_of_another_id_is_told_whichever_topic_it_is() -> None:
    known = CommitNote(NOW, {"item-updates": "a", "item-codes": "b"})
    assert replaced_logs([standing(1, known)], {"item-updates": "a", "item-codes": "b"}) == []
    assert replaced_logs([standing(1, known)], {"item-updates": "a", "item-codes": "c"}) == ["item-codes"]
    assert replaced_logs([standing(1, known)], {"item-updates": "a"}) == [], "not known now"
