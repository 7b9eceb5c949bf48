"""The pipeline that an assigner or indexer works for, and whether queries are answered from another one meanwhile.

Each batch costs the broker a transaction and the disk a sync, however small it is. On a machine that pipelines share, one that a
tenth of the users, or nobody, is answered from takes fewer and larger batches: its items are retrievable some hundredths of a
second later.

What must hold: the record is read once and followed from there; a promotion counts from the next batch on; where nothing was
deployed, the settings count as they are, and their pipeline is the one that answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from models.bundles.bundle import Bundle
from streamer.deployments.follow import following
from streamer.deployments.served import own_settings
from streamer.events.serving import Serving
from streamer.process.health import Health
from streamer.settings import Settings


@dataclass(frozen=True)
class OwnPipeline:
    """``settings``: what the process works with; ``bundle``: of its codebook; ``serving``: gives the record that counts now."""

    settings: Settings
    bundle: Bundle
    serving: Callable[[], Serving | None]

    def is_beside(self) -> bool:
        """Whether most queries are answered from another pipeline now."""
        serving = self.serving()
        return serving is not None and serving.codebook_of(serving.bundle) != self.bundle.layout.codebook_id

    def batch_interval_ms(self, own: float) -> float:
        """Least milliseconds from the begin of a batch to that of the next; ``own``: of the pipeline that answers most users."""
        return max(own, self.settings.generations.beside_batch_interval_ms) if self.is_beside() else own


@contextmanager
def await_own(settings: Settings, purpose: str, stop: threading.Event, health: Health) -> Iterator[OwnPipeline | None]:
    """``own_settings`` for a process: a cluster that is away is waited for; None when ``stop`` was set first.

    ``purpose``: names the client. Raises as ``own_settings``, and ``ServingRecordError``.
    """
    if not settings.pipeline:
        Bundle.open(settings.bundle)  # said before there is a broker
    with following(settings, purpose, stop, health) as serving:
        if serving is None:
            yield None
            return
        own = own_settings(settings, serving())
        yield OwnPipeline(own, Bundle.open(own.bundle), serving)
