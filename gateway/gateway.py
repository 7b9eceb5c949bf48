"""All that the routes work with, made once and let go in the right order."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Final

from gateway.clients.access import Access
from gateway.intake import Intake
from gateway.kafka.figures import FiguresReader
from gateway.kafka.indexed import IndexedWaits
from gateway.kafka.questions import Questions
from gateway.kafka.tokens import Tokens
from gateway.kafka.writes import Writes
from gateway.metrics import KEPT_ANSWERS, UNCONFIRMED_WRITES, WAITING_QUERIES
from streamer.deployments.follow import ServingFollower
from streamer.process.health import Health
from streamer.settings import Settings

_LOOK_SECONDS: Final = 1.0


class Gateway:
    """Made before the event loop, ``start``ed in it, and ``close``d in it once no request is left."""

    def __init__(self, settings: Settings, health: Health) -> None:
        """Raises ``SidstreamError`` for what cannot be served: a file of clients, a topic."""
        self.settings = settings
        self.health = health
        self.access = Access(settings.gateway)
        secret = settings.gateway.token_secret
        self.tokens = Tokens(None if secret is None else secret.get_secret_value())
        with ExitStack() as stack:
            self.intake = Intake(settings, stack.enter_context(ServingFollower(settings, "gateway")))
            self.questions = Questions(settings, health)
            self._stack = stack.pop_all()
        self.writes = Writes(settings, health)
        self.indexed = IndexedWaits(settings)
        self.figures = FiguresReader(settings)
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """In the event loop."""
        self.questions.start()
        self.writes.start()
        self.figures.start()
        WAITING_QUERIES.set_function(lambda: float(self.questions.waiting))
        KEPT_ANSWERS.set_function(lambda: float(self.questions.kept))
        UNCONFIRMED_WRITES.set_function(lambda: float(self.writes.unconfirmed))
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            self.access.look()
            self.questions.look()
            await asyncio.to_thread(self.intake.look)
            await asyncio.sleep(_LOOK_SECONDS)

    def end_within(self, seconds: float) -> None:
        """From now on whoever waits gets what there is by then."""
        self.questions.end_by(time.monotonic() + seconds)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self.indexed.close()
        self.figures.close()
        self.writes.close()
        self.questions.close()
        self._stack.close()
