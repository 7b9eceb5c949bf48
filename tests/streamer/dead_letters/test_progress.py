"""What was replayed: the newest note of a letter counts, and the notes of an older sidstream where there is none."""

from __future__ import annotations

from streamer.dead_letters.old_progress import OldProgress
from streamer.dead_letters.progress import ReplayProgress, note
from streamer.dead_letters.reading import Place

AT = ("item-updates.dlq", 0)


def test_note_names_the_letter_and_says_whether_it_was_replayed() -> None:
    assert note(Place(*AT, 17), replayed=True, at=5) == (b"item-updates.dlq/0:17", b'{"replayed":true,"at":5}')


def test_note_counts_before_what_an_older_sidstream_has_noted() -> None:
    progress = ReplayProgress({AT: {2: False, 9: True}}, {AT: OldProgress(5, frozenset({1}))})
    assert [progress.was_replayed(AT, offset) for offset in range(11)] == [
        True, False, False, True, True, False, False, False, False, True, False,
    ]  # fmt: skip
    assert not progress.was_replayed(("queries.dlq", 0), 0)
    assert [offset for offset in range(11) if progress.without_note(AT, offset)] == [0, 3, 4]


def test_letter_of_a_transaction_that_was_wanted_again_is_replayed_after_it() -> None:
    before = ReplayProgress({AT: {1: True, 2: True}})
    after = before.after([Place(*AT, 1), Place(*AT, 7)], [Place(*AT, 1), Place(*AT, 2)])
    assert after.notes == {AT: {1: True, 2: False, 7: True}}
    assert before.notes == {AT: {1: True, 2: True}}
