"""Which offsets are a producer's own, in few numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamer.client.delivery import Delivery, DeliveryLog


@given(st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 60), min_size=1)))
def test_exactly_the_offsets_that_were_given_are_ones_own(offsets: dict[int, set[int]]) -> None:
    log = DeliveryLog({0: 7})
    for partition, some in offsets.items():
        for offset in sorted(some):
            log.add(partition, offset)
    delivery = log.delivery()
    for partition in range(5):
        assert [offset for offset in range(62) if delivery.has(partition, offset)] == sorted(offsets.get(partition, ()))
    assert delivery.ends == {partition: max(some) + 1 for partition, some in offsets.items()}
    assert delivery.events == sum(map(len, offsets.values()))
    assert delivery.letters_from == {0: 7}


def test_unbroken_offsets_are_one_run() -> None:
    log = DeliveryLog({})
    for offset in range(1_000):
        log.add(0, offset)
    assert log.delivery() == Delivery({0: ((0, 1_000),)}, {})
