"""The wait between two small transactions settles where the markers of a cluster are written by then."""

from __future__ import annotations

import pytest

from streamer.exactly_once.markers import LONGEST_SECONDS, SHORTEST_SECONDS, MarkersWait

_REFUSED_SECONDS = 0.02  # librdkafka's wait


class Cluster:
    """One whose markers are written ``markers`` seconds after a commit; partitions are added 2 ms after the begin."""

    def __init__(self, markers: float, quick: float) -> None:
        self._markers, self._quick = markers, quick
        self.wait = MarkersWait()

    def refused(self, transactions: int) -> int:
        """How many of the next transactions had to wait for the markers."""
        count = 0
        for _ in range(transactions):
            refused = self.wait.seconds + 0.002 < self._markers
            self.wait.took(self._quick + refused * _REFUSED_SECONDS, self.wait.seconds)
            count += refused
        return count


@pytest.mark.parametrize("quick", [0.003, 0.05])
def test_cluster_that_writes_markers_slowly_is_given_time_until_few_transactions_are_refused(quick: float) -> None:
    cluster = Cluster(markers=0.012, quick=quick)
    cluster.refused(1_000)
    assert cluster.refused(1_000) < 30
    assert 0.009 < cluster.wait.seconds < LONGEST_SECONDS


def test_cluster_that_writes_markers_at_once_is_waited_for_as_briefly_as_before_after_one_pause_of_it() -> None:
    cluster = Cluster(markers=0.001, quick=0.004)
    assert cluster.refused(1_000) == 0
    assert cluster.wait.seconds == SHORTEST_SECONDS
    cluster.wait.took(0.08, SHORTEST_SECONDS)
    assert cluster.wait.seconds > SHORTEST_SECONDS
    cluster.refused(300)
    assert cluster.wait.seconds == SHORTEST_SECONDS


def test_cluster_that_became_slower_is_not_taken_for_one_that_refuses_for_ever() -> None:
    cluster = Cluster(markers=0.001, quick=0.004)
    cluster.refused(1_000)
    slower = Cluster(markers=0.001, quick=0.06)
    slower.wait = cluster.wait
    slower.refused(2_000)
    assert slower.wait.seconds == SHORTEST_SECONDS


def test_transactions_that_were_begun_long_after_the_one_before_do_not_shorten_the_wait() -> None:
    wait = MarkersWait()
    for _ in range(1_000):
        wait.took(0.005, begun_after=0.1)
    assert wait.seconds == LONGEST_SECONDS
