"""Interactions of one user → examples that hold what could be known at their moment, and nothing of what came after.

What must hold, whatever order interactions arrive in, however often each is there, and whatever happens later: an example's
history has only items of interactions before its moment, or is that of a query that was asked by then. Times alone decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import msgspec

from streamer.events.interactions import CLOCKS_APART_MS, CheckedInteraction


class AskedQuery(msgspec.Struct, frozen=True, array_like=True):
    """A query as it was asked: ``at``: when the broker had it, milliseconds since the epoch; ``history``: ids, oldest first."""

    query_id: str
    at: int
    user: str
    text: str
    history: tuple[str, ...]


class JoinedInteraction(msgspec.Struct, frozen=True, array_like=True):
    """An interaction, and the query that it came of, where that is known."""

    said: CheckedInteraction
    query: AskedQuery | None = None


class MomentExample(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the file: what led ``user`` to ``item`` at ``time`` (milliseconds since the epoch)."""

    user: str
    item: str
    time: int
    query: str = ""
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class Window:
    """Which examples are made: of interactions from ``since`` to before ``until``, of these ``kinds``; histories have the newest
    ``most`` items of interactions of ``history_kinds``, also from before ``since``.
    """

    since: int
    until: int
    kinds: Collection[str]
    history_kinds: Collection[str]
    most: int = 256

    def makes(self, said: CheckedInteraction) -> bool:
        """Whether an interaction may give an example."""
        return self.since <= said.at < self.until and said.kind in self.kinds


MOST_OF_A_USER: Final = 100_000
"""Who has more is no person: all guests under one name, or a machine."""


@dataclass
class NewestInteractions:
    """The newest ``most`` different interactions of one user, whatever the order in which they come; ``cut``: there were more."""

    most: int = MOST_OF_A_USER
    cut: bool = False
    _some: list[JoinedInteraction] = field(default_factory=list)

    def add(self, one: JoinedInteraction) -> None:
        self._some.append(one)
        if len(self._some) >= 2 * self.most:
            self._some = self.kept

    @property
    def kept(self) -> list[JoinedInteraction]:
        """Those that count so far."""
        if len(self._some) <= self.most:
            return self._some
        different = sorted({_order(one): one for one in self._some}.values(), key=_order)
        self.cut |= len(different) > self.most
        return different[-self.most :]


@dataclass
class Left:
    """How many interactions of the window gave no example: ``repeated``: the user had had the item; ``twice``: there is another
    one of the same item and moment; ``nothing``: neither a text nor a history came before them.
    """

    repeated: int = 0
    twice: int = 0
    nothing: int = 0


def best_query(said: CheckedInteraction, queries: Iterable[AskedQuery]) -> AskedQuery | None:
    """The query that an interaction came of, among those of its id: the newest one that was asked by then, clocks may differ by
    ``CLOCKS_APART_MS``, and not by another user.
    """
    possible = [one for one in queries if one.at <= said.at + CLOCKS_APART_MS and one.user in ("", said.user)]
    return max(possible, key=lambda one: (one.at, one.text, one.history), default=None)


def examples_of_user(interactions: Sequence[JoinedInteraction], window: Window, left: Left) -> Iterator[MomentExample]:
    """The examples of one user, in the order of their moments."""
    before: deque[str] = deque(maxlen=max(1, window.most))
    had: set[str] = set()
    for at, together in groupby(sorted(interactions, key=_order), key=lambda one: one.said.at):
        if at >= window.until:
            return
        moment = list(together)
        now: set[str] = set()
        for one in moment:
            item = one.said.item
            if one.said.kind in window.kinds:
                if window.makes(one.said):
                    example = None if item in had or item in now else _example(one, before, window.most)
                    if example is not None:
                        yield example
                    elif item in now:
                        left.twice += 1
                    elif item in had:
                        left.repeated += 1
                    else:
                        left.nothing += 1
                now.add(item)
        for one in moment:
            # What is looked at, put into the cart and bought is one step of a history.
            if one.said.kind in window.history_kinds and not (before and before[-1] == one.said.item):
                before.append(one.said.item)
        had |= now


def _example(one: JoinedInteraction, before: Iterable[str], most: int) -> MomentExample | None:
    """The example of an interaction; None where nothing was known before it. Its history is without the item itself: an answer
    names no item of the history.
    """
    said, query = one.said, one.query
    text, history = said.text, tuple(before)
    if query is not None:
        text = text or query.text
        if query.history and query.at <= said.at:
            history = query.history
    history = tuple(item for item in history if item != said.item)
    history = history[-most:] if most else ()
    if not text.strip() and not history:
        return None
    return MomentExample(user=said.user, item=said.item, time=said.at, query=text, history=history)


def _order(one: JoinedInteraction) -> tuple[int, str, bool, bool, str, str, str]:
    """By time; of one moment, by item, and what says more of it first: the same for every order of arrival."""
    said = one.said
    return said.at, said.item, one.query is None, not said.text, said.text, said.query, said.kind
