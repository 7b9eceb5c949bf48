"""Work that nobody waits for yet rests, and works as ever once somebody does."""

from __future__ import annotations

from streamer.process.yielding import Yielding


def test_batches_are_small_and_followed_by_a_rest_until_it_is_over_for_good() -> None:
    over = False
    yielding = Yielding(0.25, 100, lambda: over)
    assert (yielding.batch_size(8_000), yielding.batch_size(10)) == (100, 10)
    assert yielding.rest(0.5) == 1.5
    assert yielding.rest(1_000.0) == 5.0
    over = True
    assert (yielding.batch_size(8_000), yielding.rest(0.5)) == (8_000, 0.0)
    over = False
    assert (yielding.batch_size(8_000), yielding.rest(0.5)) == (8_000, 0.0)
