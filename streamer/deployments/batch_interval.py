"""How long a pipeline's processes rest between two batches: on a machine that pipelines share, what answers comes first.

Each batch costs the broker a transaction and the disk a sync, however small it is. A pipeline that a tenth of the users, or
nobody, is answered from takes fewer and larger ones: its items are retrievable some hundredths of a second later.

What must hold: a promotion counts from the next batch on; where nothing was deployed, the pipeline is the one that answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from streamer.deployments.follow import ServingFollower, await_follower
from streamer.events.serving import Serving
from streamer.kafka.admin import MissingTopicsError
from streamer.process.health import Health
from streamer.settings import Settings


def interval_ms(settings: Settings, codebook: str, own: float, serving: Serving | None) -> float:
    """Least milliseconds from the begin of a batch to that of the next; ``own``: of the pipeline that answers most users."""
    if serving is None or serving.codebook_of(serving.bundle) == codebook:
        return own
    return max(own, settings.generations.beside_batch_interval_ms)


@contextmanager
def batch_interval(
    settings: Settings, codebook: str, own: float, purpose: str, stop: threading.Event, health: Health
) -> Iterator[Callable[[], float]]:
    """``interval_ms`` of the record that counts, to be asked before each rest. ``purpose``: names the client."""
    follower: ServingFollower | None = None
    with suppress(MissingTopicsError):  # an installation from before there were deployments
        follower = await_follower(settings, purpose, stop, health)
    if follower is None:
        yield lambda: own
        return
    with follower as followed:
        yield lambda: interval_ms(settings, codebook, own, followed.current)
