"""A batch of item updates by column, and one of them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from streamer.events.intake import EventError
from streamer.events.values.embeddings import CheckedEmbeddings, PlausibleNorms, check_embeddings, matrix_of

NO_TIME: Final = 0  # of an update that has no time at all


class Update(msgspec.Struct, frozen=True, gc=False):
    """An item update that passed every check but those of its numbers, which are made for a batch at once.

    ``embedding``: little-endian float32 or float16 bytes of D numbers, None deletes the item; ``guessed``: nobody said that it is
    float16. What is needed until the batch's end and no more: an embedding as a list would be four times its bytes.
    ``attributes``: canonical MessagePack, None if it has none.
    """

    record: Message
    item_id: bytes
    embedding: bytes | None
    guessed: bool = False
    title: str = ""
    weight: float = 0.0
    updated_at: int = NO_TIME
    attributes: bytes | None = None


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The usable updates of a batch in the order of their records, by column: the fields of ``Update``, N of each.

    ``guessed``: the places of those that nobody said are float16; ``stamps``: milliseconds of the records' Kafka timestamps, not
    above 0 where there is none; ``rejected``: records that cannot be used, and why; ``others``: how many were for another
    codebook; ``headers``: whether any record has headers.
    """

    records: Sequence[Message]
    ids: list[bytes]
    embeddings: list[bytes | None]
    guessed: list[int]
    titles: list[str]
    weights: list[float]
    updated_at: list[int]
    attributes: list[bytes | None]
    stamps: list[int]
    rejected: list[tuple[Message, EventError]]
    others: int
    headers: bool

    def checked_embeddings(
        self, dimension: int, plausible: PlausibleNorms
    ) -> tuple[Sequence[int], NDArray[np.float32], CheckedEmbeddings]:
        """Places of the updates that have an embedding (a deletion has none), the matrix float32 (N, D) of these, and what was
        found of its rows.
        """
        upserts: Sequence[int] = range(len(self.ids))
        if not all(self.embeddings):
            upserts = [place for place, content in enumerate(self.embeddings) if content is not None]
        embeddings = [content for content in self.embeddings if content is not None]
        matrix = matrix_of(embeddings, dimension)
        guessed: list[int] = []
        if self.guessed:
            rows = {place: row for row, place in enumerate(upserts)}
            guessed = [rows[place] for place in self.guessed]
        return upserts, matrix, check_embeddings(matrix, embeddings, guessed, plausible)


def columns(
    records: Sequence[Message],
    keys: list[Any],
    rows: Sequence[Any],
    times: Sequence[int],
    attributes: list[bytes | None],
    stamps: list[int],
    guessed: list[int],
    rejected: list[tuple[Message, EventError]],
    others: int,
    headers: bool,
) -> UpdateBatch:
    """Of usable updates, each an ``ItemUpdate`` or an ``Update``; ``times``: of those that have none of their own."""
    return UpdateBatch(
        records,
        keys,
        [row.embedding for row in rows],
        guessed,
        [row.title for row in rows],
        [row.weight for row in rows],
        [time if (at := row.updated_at) is None else at for row, time in zip(rows, times, strict=True)],
        attributes,
        stamps,
        rejected,
        others,
        headers,
    )
