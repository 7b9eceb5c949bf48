"""What sidstream noted of a replay before it had a topic for that; the metadata here were written by that sidstream."""

from __future__ import annotations

import pytest

from streamer.dead_letters.old_progress import CARRIED_OVER, OldProgress, OldProgressError


@pytest.mark.parametrize(
    ("position", "metadata", "state"),
    [
        (2, "1:5:c-qSV003zKX#", OldProgress(7, frozenset({2, 5}))),
        (11, "1:1:c-mtC000310R", OldProgress(12, frozenset({11}))),
        (0, "1:3000:c-jjM9R&jb0Cxa<ga", OldProgress(3_000, frozenset(range(0, 3_000, 2)))),
        (20, "", OldProgress(20)),
        (7, None, OldProgress(7)),  # another tool has set the offset
        (-1001, "", OldProgress()),
    ],
)
def test_old_note_is_read(position: int, metadata: str | None, state: OldProgress) -> None:
    assert OldProgress.parse(position, metadata) == state


def test_letters_below_the_position_and_not_left_were_replayed() -> None:
    state = OldProgress.parse(2, "1:5:c-qSV003zKX#")
    assert [state.was_replayed(offset) for offset in range(8)] == [True, True, False, True, True, False, True, False]


def test_offset_that_was_carried_over_says_nothing_here_and_is_refused_by_an_older_sidstream() -> None:
    assert OldProgress.parse(0, CARRIED_OVER) == OldProgress()
    assert CARRIED_OVER.count(":") < 2, "it wants three parts, and refuses anything else"


@pytest.mark.parametrize("metadata", ["nonsense", "2:5:abc", "1:x:abc", "1:99:abc", "1:5:", "1:999999999999:c"])
def test_metadata_of_someone_else_is_refused(metadata: str) -> None:
    with pytest.raises(OldProgressError, match="--again"):
        OldProgress.parse(3, metadata)
