"""Read your writes: a query waits until what its tokens say is in the index of this machine, or was refused.

What must hold: a wait has a thread of its own and never the event loop's; how many there are at once has a bound.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import KafkaException

from gateway.problems import Problem, too_busy
from models.errors import SidstreamError
from streamer.client.delivery import Delivery
from streamer.client.read_your_writes import NotIndexedError, await_indexed
from streamer.kafka.errors import error_text
from streamer.settings import Settings


class IndexedWaits:
    """For the event loop alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._most = settings.gateway.maximum_indexed_waits
        self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="indexed")
        self._waiting = 0

    async def wait_for(self, delivery: Delivery, seconds: float) -> None:
        """Return once everything is indexed.

        Raises:
            Problem: 409: some was refused, with the class and an example; 504: not within ``seconds``, and who is behind; 429.
        """
        if self._waiting >= self._most:
            raise too_busy(f"{self._most} queries wait for writes to be indexed: ask again, or without a token")
        self._waiting += 1
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: await_indexed(self._settings, delivery, seconds=seconds)
            )
        except NotIndexedError as error:
            raise Problem(504, "NotIndexed", f"{error}. Ask again with the same token", again_seconds=1) from None
        except (SidstreamError, KafkaException) as error:
            reason = error_text(error) if isinstance(error, KafkaException) else str(error)
            raise Problem(503, "NotIndexed", f"whether the writes are indexed cannot be seen here: {reason}") from None
        finally:
            self._waiting -= 1
        if not outcome.complete:
            classes = "; ".join(f"{one.events:,} × {one.kind}, as: {one.example}" for one in outcome.refused)
            raise Problem(
                409,
                "WritesRefused",
                f"some of the writes of this token were refused, and will never be indexed: {classes}. Correct and send them, "
                "then ask with the token of that",
            )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
