"""What the rounds of a query over shards carry: what a shard is asked, and what it says so that the parts add up to one answer.

A query is asked of every shard up to three times, under one id (``retriever.merging`` says why that is exact):

1. ``history``, if it has one: the codes of its items, each of which one shard alone knows;
2. ``search``: the SIDs that each shard's search finds, and sums over the shard's items;
3. ``items``: the best items of the SIDs that are the best of all shards', scored with the sums of all shards.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Step = Literal["history", "search", "items"]
ASK_ANEW: Final = "AskAnew"
"""Kind of the error of a shard that answers by another bundle, or under another layout, than what it was told was found by."""


class HistoryItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a query's history as its shard knows it; ``title``: as much of it as a prompt reads; ``vector``: as stored."""

    item_id: str
    codes: tuple[int, ...]
    title: str = ""
    vector: Annotated[bytes, Meta(max_length=65_535)] | UnsetType = UNSET


class PartSid(msgspec.Struct, frozen=True, array_like=True):
    """A SID that a search found: its SID token numbers, natural log-probability, and the weights of its eligible items together:
    of a shard's, or of all shards'.
    """

    tokens: tuple[int, ...]
    score: float
    weight: float


class DenseSums(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the eligible items with a vector, of a shard or of all: ``log_near``, the log of Σ exp(λ cos), absent for no such
    item; ``together``: Σ of what was taken together with the history.
    """

    log_near: float | UnsetType = UNSET
    together: float = 0.0


class AskedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a query asks of a shard. ``round`` comes back in the answer. ``bundle`` and ``layout``: under which ``history``,
    ``sids`` and ``sums`` were found (those of all shards); another one answers that it must be asked anew.
    """

    step: Step
    round: int = 0
    bundle: str = ""
    layout: int | UnsetType = UNSET
    history: tuple[HistoryItem, ...] = ()
    sids: tuple[PartSid, ...] | UnsetType = UNSET
    sums: DenseSums | UnsetType = UNSET


class AnsweredPart(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer is a part of: it comes from an index of the ``partitions`` (as ``0-3,6``) out of ``partition_count`` of
    ``item-codes``, to the ``step`` and ``round`` that were asked; without a step it is what this shard alone would answer.

    ``history``, and how many of the newest items of one are read; ``sids``, absent where no search was made, and how many a
    search is to find; ``order``: of each item its score unrounded, the place of its SID in ``sids`` and its ``updated_at``.
    """

    partitions: str
    partition_count: int
    step: Step | UnsetType = UNSET
    round: int = 0
    history: tuple[HistoryItem, ...] = ()
    history_read: int = 0
    sids: tuple[PartSid, ...] | UnsetType = UNSET
    beams: int = 0
    sums: DenseSums | UnsetType = UNSET
    order: tuple[tuple[float, int, int], ...] = ()
