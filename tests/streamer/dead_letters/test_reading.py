"""How a person names a dead letter."""

from __future__ import annotations

import pytest

from streamer.dead_letters.reading import DeadLetterError, Place


@pytest.mark.parametrize(
    ("text", "place"),
    [("0:17", Place(None, 0, 17)), ("item-updates.dlq/3:5", Place("item-updates.dlq", 3, 5))],
)
def test_place_is_read_and_written_alike(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert str(place) == text


@pytest.mark.parametrize("text", ["", "17", "a/b/0:1", "0:-1", "0:1:2", "topic/0"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(DeadLetterError, match="PARTITION:OFFSET"):
        Place.parse(text)
