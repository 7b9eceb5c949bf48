"""How long to wait after a commit before the next small transaction begins: until the markers of the commit are written.

The coordinator answers a commit before it has written its markers (KIP-98), and refuses until then what the next transaction
adds. librdkafka asks for a partition again after 20 ms, whatever its settings say. Nobody is told when the markers are written;
outputs that took those 20 ms longer than others to be sent and committed tell that they were not.
"""

from __future__ import annotations

from typing import Final

SHORTEST_SECONDS: Final = 0.004  # a broker on this machine needs 1 ms, 5 at the 99th percentile
LONGEST_SECONDS: Final = 0.02
_REFUSED_SECONDS: Final = 0.018
_LONGER: Final = 1.5
_SHORTER: Final = 0.99  # so that one in forty is refused where the cluster needs more than the shortest
_FORGETS: Final = 0.01  # of what others take


class MarkersWait:
    """Learns ``seconds``, between ``SHORTEST_SECONDS`` and ``LONGEST_SECONDS``, from what each commit took.

    It begins with the longest: what a commit takes that is not refused must be known to tell one that is.
    """

    def __init__(self) -> None:
        self.seconds = LONGEST_SECONDS
        self._quickest = float("inf")

    def took(self, seconds: float, begun_after: float) -> None:
        """The last outputs and the commit took ``seconds``; the transaction was begun ``begun_after`` seconds after the one
        before was committed.
        """
        if seconds >= self._quickest + _REFUSED_SECONDS:
            self.seconds = min(LONGEST_SECONDS, self.seconds * _LONGER)
        elif begun_after < self.seconds * _LONGER:  # one that came later tells nothing of this wait
            self.seconds = max(SHORTEST_SECONDS, self.seconds * _SHORTER)
        more = max(0.0, seconds - self._quickest)
        self._quickest = min(seconds, self._quickest + _FORGETS * more)
