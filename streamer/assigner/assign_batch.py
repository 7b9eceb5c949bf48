"""A batch of item updates → codes and dead letters, without touching Kafka.

An item's codes depend on its id, its embedding and the bundle alone, its vector on its embedding: a batch that is processed
again gives the same bytes. The output partition is the input partition, so the order of one item's updates is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import structlog
from confluent_kafka import Message
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from models.attributes import AttributeRules
from models.dense.vectors import quantise
from streamer.assigner.metrics import IMPLAUSIBLE_NORMS, OTHER_MODEL, UNKNOWN_FIELDS
from streamer.events.dead_letter import Rejection, dead_letter
from streamer.events.formats.reading import NO_FORMATS, Formats
from streamer.events.outgoing import Outgoing
from streamer.events.records import ITEM_CODES, ItemCodes, ItemUpdate
from streamer.events.updates.batch import UpdateBatch
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.events.values.embeddings import PlausibleNorms
from streamer.events.values.unknown_fields import OTHER, nearest, note_of
from streamer.process.metrics import count_dead_letter
from streamer.settings.pipeline import AssignerSettings
from streamer.tracing.batches import PassedOn, Traces

log = structlog.get_logger(__name__)

PROCESS: Final = "assigner"
_FIELDS: Final = tuple(ItemUpdate.__struct_fields__)
_NORMS_LOGGED_EVERY_MS: Final = 60_000


class Encoder(Protocol):
    """Embeddings (N, D) and item ids → codes (N, L); ``ItemEncoder`` outside of tests."""

    @property
    def codebook_id(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]: ...


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class AssignBatch:
    """The assigner's transform: a batch of ``item-updates`` records → ``item-codes`` records and dead letters.

    The last usable event of an item in a partition and a batch wins; the others of that item are not sent on.
    ``attributes``: what those of an update may be, by default the defaults; ``norms``: the norms of the bundle's fit at 0, 1,
    50, 99 and 100 % of its items; ``embedding_model``: the bundle's: updates of another one are passed over;
    ``formats``: what values are read by that are no plain JSON or MessagePack; ``traces``: of the loop's batches; ``clock``:
    milliseconds since the epoch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        codes_topic: str,
        dead_letter_topic: str,
        limits: AssignerSettings,
        attributes: AttributeRules | None = None,
        norms: Sequence[float] | None = None,
        embedding_model: str | None = None,
        formats: Formats = NO_FORMATS,
        traces: Traces | None = None,
        clock: Callable[[], int] = _now_ms,
    ) -> None:
        self._encoder = encoder
        self._vectors = limits.vectors
        self._codes_topic = codes_topic
        self._dead_letter_topic = dead_letter_topic
        wanted = UpdateLimits.of(limits, encoder.dimension, attributes, embedding_model)
        self._intake = UpdateIntake(wanted, strict=limits.strict, formats=formats)
        self._model = embedding_model
        self._passed_over = 0
        self._plausible = PlausibleNorms.of(norms)
        self._traces: Traces = PassedOn() if traces is None else traces
        self._clock = clock
        self._fields_told: dict[str, int] = {}
        self._norms_logged_at = -_NORMS_LOGGED_EVERY_MS

    def __call__(self, records: list[Message]) -> list[Outgoing]:
        now = self._clock()
        updates = self._intake.read_batch(records, now)
        rejected = [self._reject(record, error.kind, error) for record, error in updates.rejected]
        self._tell_others(updates.others)
        self._tell_unknown_fields()

        upserts, matrix, unusable = self._checked_matrix(updates, rejected, now)
        last = _last_of_each_item(updates, unusable)
        if len(last) < len(updates.ids):
            kept = set(last)
            rows = [row for row, place in enumerate(upserts) if place in kept]
            upserts, matrix = [upserts[row] for row in rows], matrix[rows]
        values: Sequence[bytes | None] = self._encoded(updates, upserts, matrix)
        if len(values) < len(updates.ids):
            found = dict(zip(upserts, values, strict=True))
            values = [found.get(place) for place in last]
        return self._outgoing(updates, last, values, now) + rejected

    def commit_note(self) -> dict[str, Any]:
        """What is noted beside a committed offset for ``sidstream status``: the unknown fields since this process' start."""
        return {"unknown_fields": note_of(self._intake.unknown_fields)}

    def _checked_matrix(
        self, updates: UpdateBatch, rejected: list[Outgoing], now: int
    ) -> tuple[Sequence[int], NDArray[np.float32], set[int]]:
        """Places of the updates that have an embedding, float32 (N, D) of these, and the places of those that cannot be used.

        Their dead letters join ``rejected``.
        """
        upserts, matrix, checked = updates.checked_embeddings(self._encoder.dimension, self._plausible)
        for row, fault in sorted(checked.faults.items()):
            rejected.append(self._reject(updates.records[upserts[row]], fault.kind, fault))
        if len(checked.strange):
            IMPLAUSIBLE_NORMS.inc(len(checked.strange))
            if now - self._norms_logged_at >= _NORMS_LOGGED_EVERY_MS:
                self._norms_logged_at = now
                row = int(checked.strange[0])
                log.warning(
                    "implausible_norms",
                    updates=len(checked.strange),
                    item=ascii(updates.ids[upserts[row]].decode()),
                    norm=round(float(checked.norms[row]), 4),
                    expected=f"{self._plausible.minimum:.3g} to {self._plausible.maximum:.3g}",
                    advice="do they come from the model that the bundle was fitted with? scale them alike, or fit again",
                )
        return upserts, matrix, {upserts[row] for row in checked.faults}

    def _encoded(self, updates: UpdateBatch, places: Sequence[int], matrix: NDArray[np.float32]) -> list[bytes]:
        """The values of the codes of the updates at ``places``, whose embeddings are the rows of ``matrix``; with their vectors,
        if those are kept.
        """
        if not places:
            return []
        codes = self._encoder.encode(matrix, [updates.ids[place] for place in places])
        vectors: Iterable[bytes | UnsetType] = quantise(matrix).encode() if self._vectors else repeat(UNSET)
        columns = (updates.titles, updates.weights, updates.updated_at, updates.attributes)
        titles, weights, times, attributes = columns
        codebook, encode, raw = self._encoder.codebook_id, ITEM_CODES.encode, msgspec.Raw
        return [
            encode(
                ItemCodes(
                    codebook=codebook,
                    codes=numbers,
                    title=titles[place],
                    weight=weights[place],
                    updated_at=times[place],
                    vector=vector,
                    attributes=UNSET if (said := attributes[place]) is None else raw(said),
                )
            )
            for place, numbers, vector in zip(places, codes.tolist(), vectors, strict=False)
        ]

    def _outgoing(
        self, updates: UpdateBatch, places: Sequence[int], values: Sequence[bytes | None], now: int
    ) -> list[Outgoing]:
        """The codes of the items at ``places``; None is an item's tombstone."""
        topic, ids, stamps, records = self._codes_topic, updates.ids, updates.stamps, updates.records
        traced = self._traces.onward(records) if updates.headers else None
        headers = [None] * len(records) if traced is None else traced
        # What comes of an event has its Kafka timestamp, as in Kafka Streams: so the indexer can tell how long an update
        # took. Never one of the future, which the broker might refuse for ever; 0 is the time of producing.
        return [
            Outgoing(
                topic,
                ids[place],
                value,
                records[place].partition(),
                headers[place],
                at if 0 < (at := stamps[place]) < now else 0,
            )
            for place, value in zip(places, values, strict=True)
        ]

    def _tell_others(self, count: int) -> None:
        """Metrics of the updates that are for another codebook; the first ones are logged."""
        OTHER_MODEL.inc(count)
        if count and not self._passed_over:
            log.info(
                "other_embedding_model",
                updates=count,
                takes=self._model,
                next="they are for a codebook that was fitted on embeddings of that name (docs/deployments.md)",
            )
        self._passed_over += count

    def _tell_unknown_fields(self) -> None:
        """Metrics of the unknown fields of a batch; each name is logged once."""
        counts, told = self._intake.unknown_fields, self._fields_told
        if counts == told:
            return
        for name, count in counts.items():
            if name not in told and count:
                log.warning(
                    "unknown_field",
                    field=ascii(name),
                    advice="more names than are told apart" if name == OTHER else nearest(name, _FIELDS),
                )
            UNKNOWN_FIELDS.labels(name).inc(count - told.get(name, 0))
        self._fields_told = dict(counts)

    def _reject(self, record: Message, kind: str, error: Exception) -> Outgoing:
        count_dead_letter(PROCESS, kind)
        self._traces.refused(record, kind)
        return dead_letter(
            self._dead_letter_topic, record, Rejection(PROCESS, kind, str(error), self._encoder.codebook_id)
        )


def _last_of_each_item(updates: UpdateBatch, unusable: set[int]) -> Sequence[int]:
    """Places of the last usable update of each item, in each partition: which partition's holds is the indexer's to judge."""
    if not unusable and len(set(updates.ids)) == len(updates.ids):
        return range(len(updates.ids))
    records = updates.records
    last: dict[bytes, int] = {}
    elsewhere: list[int] = []
    for place, item_id in enumerate(updates.ids):
        if place in unusable:
            continue
        earlier = last.pop(item_id, None)
        if earlier is not None and records[earlier].partition() != records[place].partition():
            elsewhere.append(earlier)
        last[item_id] = place
    return elsewhere + list(last.values())
