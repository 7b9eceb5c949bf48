"""What a loop tells of its batches, and asks for what it makes of their records, whether spans are made of it or not.

Nothing here imports OpenTelemetry: without tracing, contexts are passed on as they came, and nothing else is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

from confluent_kafka import Message

from streamer.tracing.context import Headers, contexts_of
from streamer.tracing.started import is_tracing


class BatchTrace(Protocol):
    """One batch. One that is neither ended nor failed (it waits, and is begun again) leaves no trace."""

    @property
    def traced(self) -> Message | None:
        """A record of a trace that is recorded, if there is one."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Log lines of the block have the batch's trace id."""
        ...

    def end(self) -> None:
        """What came of it is committed."""
        ...

    def fail(self, fault: BaseException) -> None:
        """It is done again, or its process ends."""
        ...


class Traces(Protocol):
    """The batches of one loop, one after the other."""

    def begin(self, records: Sequence[Message]) -> BatchTrace:
        """A batch is in hand; the questions below are about it, until the next one begins."""
        ...

    def onward(self, records: Sequence[Message]) -> list[Headers | None] | None:
        """For each record the headers that what is made of it gets, None for none; None instead of a list: none gets any."""
        ...

    def refused(self, record: Message, kind: str) -> None:
        """It became a dead letter, or an error answer."""
        ...


class _Untraced:
    """Any batch, without tracing."""

    traced = None

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def end(self) -> None: ...

    def fail(self, fault: BaseException) -> None: ...


UNTRACED: Final[BatchTrace] = _Untraced()


class PassedOn:
    """Contexts as they came."""

    def begin(self, records: Sequence[Message]) -> BatchTrace:
        return UNTRACED

    def onward(self, records: Sequence[Message]) -> list[Headers | None] | None:
        contexts = contexts_of(records)
        return None if contexts is None else [None if one is None else one.headers for one in contexts]

    def refused(self, record: Message, kind: str) -> None: ...


def traces_of(operation: str, topic: str, *, group: str, attributes: Mapping[str, str] | None = None) -> Traces:
    """Of a loop over ``topic`` that does ``operation`` with each record: ``assign``, ``index`` or ``answer``.

    ``group``: its consumer group; ``attributes``: of all its spans.
    """
    if not is_tracing():
        return PassedOn()
    from streamer.tracing.spans import SpansOfBatches

    return SpansOfBatches(operation, topic, group=group, attributes=attributes)
