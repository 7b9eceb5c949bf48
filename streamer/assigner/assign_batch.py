"""A batch of item updates → codes and dead letters, without touching Kafka.

An item's codes depend on its embedding and the codebook alone: a batch that is processed again gives the same bytes.
The output partition is the input partition, so the order of one item's updates is kept.
"""

from __future__ import annotations

from time import time_ns
from typing import Final, NamedTuple, Protocol

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.intake import EventError, checked_id, decode_event, within
from streamer.events.outgoing import Outgoing
from streamer.events.records import ITEM_CODES, ITEM_UPDATE, ItemCodes, ItemUpdate
from streamer.process.metrics import count_dead_letter
from streamer.settings import AssignerSettings

PROCESS: Final = "assigner"


class Encoder(Protocol):
    """Embeddings → codes; ``OnnxEncoder`` outside of tests."""

    @property
    def codebook_id(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    def encode(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint16]: ...


class _Upsert(NamedTuple):
    """What is needed of an update until the batch's end; its embedding as a list would be four times its bytes."""

    record: Message
    item_id: bytes
    title: str
    weight: float
    updated_at: int


class AssignBatch:
    """The assigner's transform: a batch of ``item-updates`` records → ``item-codes`` records and dead letters.

    The last usable event of an item in a batch wins; the others of that item are not sent on.
    """

    def __init__(self, encoder: Encoder, *, codes_topic: str, dead_letter_topic: str, limits: AssignerSettings) -> None:
        self._encoder = encoder
        self._codes_topic = codes_topic
        self._dead_letter_topic = dead_letter_topic
        self._limits = limits
        # Read for each event; an attribute of the settings takes longer.
        self._maximum_event_bytes = limits.maximum_event_bytes
        self._maximum_title_characters = limits.maximum_title_characters
        self._maximum_weight = limits.maximum_weight
        self._float32_bytes = 4 * encoder.dimension

    def __call__(self, records: list[Message]) -> list[Outgoing]:
        upserts: list[_Upsert] = []
        embeddings: list[bytes] = []
        rejected: list[Outgoing] = []
        # Row of the last usable event of each item; a tombstone is its record instead.
        last: dict[bytes, int | Message] = {}
        for record in records:
            try:
                item_id = checked_id(record.key(), "item")
                value = record.value()
                if value is None:
                    last.pop(item_id, None)
                    last[item_id] = record
                    continue
                update, updated_at = self._decode(record, value)
                embeddings.append(self._embedding_bytes(update.embedding))
            except EventError as error:
                rejected.append(self._reject(record, error))
                continue
            upserts.append(_Upsert(record, item_id, update.title, update.weight, updated_at))

        matrix = np.frombuffer(b"".join(embeddings), dtype="<f4").reshape(-1, self._encoder.dimension)
        # A finite squared norm means finite numbers, and scores that cannot overflow.
        with np.errstate(over="ignore"):
            usable = np.isfinite(np.einsum("nd,nd->n", matrix, matrix))
        for row, upsert in enumerate(upserts):
            if not usable[row]:
                fault = EventError("EmbeddingNotFinite", "the embedding holds NaN, infinity or numbers beyond float32")
                rejected.append(self._reject(upsert.record, fault))
                continue
            earlier = last.pop(upsert.item_id, None)
            if isinstance(earlier, Message) and _later(earlier, upsert.record):
                last[upsert.item_id] = earlier
            else:
                last[upsert.item_id] = row
        return self._outgoing(last, upserts, matrix) + rejected

    def _outgoing(
        self, last: dict[bytes, int | Message], upserts: list[_Upsert], matrix: NDArray[np.float32]
    ) -> list[Outgoing]:
        rows = [row for row in last.values() if isinstance(row, int)]
        codes = iter(
            self._encoder.encode(matrix if len(rows) == len(matrix) else matrix[rows]).tolist() if rows else []
        )
        # What comes of an event has its Kafka timestamp, as in Kafka Streams: so the indexer can tell how long an update took.
        # Never one of the future, which the broker might refuse for ever; 0 is the time of producing.
        codebook, topic, now = self._encoder.codebook_id, self._codes_topic, time_ns() // 1_000_000
        outgoing = []
        for item_id, row in last.items():
            if not isinstance(row, int):
                at = row.timestamp()[1]
                outgoing.append(Outgoing(topic, item_id, None, row.partition(), None, at if 0 < at < now else 0))
                continue
            record, _, title, weight, updated_at = upserts[row]
            value = ITEM_CODES.encode(
                ItemCodes(
                    codebook=codebook,
                    codes=next(codes),
                    title=title,
                    weight=weight,
                    updated_at=updated_at,
                )
            )
            at = record.timestamp()[1]
            outgoing.append(Outgoing(topic, item_id, value, record.partition(), None, at if 0 < at < now else 0))
        return outgoing

    def _decode(self, record: Message, value: bytes) -> tuple[ItemUpdate, int]:
        update: ItemUpdate
        update, time = decode_event(ITEM_UPDATE, record, value, self._maximum_event_bytes, self._limits)
        if not 0 <= update.weight <= self._maximum_weight:  # also refuses NaN
            raise EventError("InvalidEvent", f"weight {update.weight} is not within 0..{self._maximum_weight:g}")
        within(self._maximum_title_characters, len(update.title), "title", "characters")
        if update.updated_at is not None:
            time = update.updated_at
        elif time is None:
            time = record.timestamp()[1]
        if not 0 <= time < 1 << 62:
            raise EventError("InvalidEvent", f"updated_at {time} is not milliseconds since 1970")
        return update, time

    def _embedding_bytes(self, embedding: bytes | list[float]) -> bytes:
        """Little-endian float32 bytes of D numbers."""
        if isinstance(embedding, bytes):
            if len(embedding) == self._float32_bytes:
                return embedding
            if 2 * len(embedding) == self._float32_bytes:
                return np.frombuffer(embedding, "<f2").astype("<f4").tobytes()
            raise EventError(
                "WrongDimension",
                f"{len(embedding)} bytes of embedding; this codebook takes {self._float32_bytes} (float32) "
                f"or {self._float32_bytes // 2} (float16)",
            )
        if len(embedding) != self._encoder.dimension:
            raise EventError(
                "WrongDimension",
                f"{len(embedding)} numbers of embedding; this codebook takes {self._encoder.dimension}",
            )
        with np.errstate(over="ignore"):
            return np.asarray(embedding, "<f8").astype("<f4").tobytes()

    def _reject(self, record: Message, error: EventError) -> Outgoing:
        count_dead_letter(PROCESS, error.kind)
        return dead_letter(self._dead_letter_topic, record, Rejection(PROCESS, error.kind, str(error)))


def _later(one: Message, other: Message) -> bool:
    """Whether ``one`` comes after ``other``; both have the same key, so they normally share a partition."""
    if one.partition() == other.partition():
        return bool(one.offset() > other.offset())
    return bool(one.timestamp()[1] >= other.timestamp()[1])
