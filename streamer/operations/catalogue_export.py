"""The live catalogue as files, as training and evaluation read them: every item that ``item-updates`` holds, with its embedding.

What must hold: an item is there as its newest usable update has it, read as the assigner reads it; a deleted one is not there;
the same records give the same files, whatever order the partitions are read in. Embeddings wait on the disk, so that memory
holds ids, titles and attributes alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

import msgspec
import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from models.attributes import Attributes
from models.catalogue import Catalogue, CatalogueItem
from models.errors import SidstreamError
from streamer.events.updates.batch import UpdateBatch
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.events.values.embeddings import PlausibleNorms
from streamer.kafka.read_to_end import end_reader, read_spans, whole_topics
from streamer.registry.reading import formats_of
from streamer.settings import Settings

_READ_AT_ONCE: Final = 2_000
_DECODE_ATTRIBUTES: Final = msgspec.msgpack.Decoder(Attributes).decode


@dataclass(frozen=True)
class Exported:
    """``items`` that were written; ``refused``: why → how many updates could not be used; ``other_models``: updates with the
    embedding of another model, which are passed over.
    """

    items: int
    refused: Counter[str]
    other_models: int = 0


@dataclass(slots=True)
class _Item:
    """An item's newest update. ``place``: (time, partition, offset) of its record; ``row``: of its embedding in the file."""

    place: tuple[int, int, int]
    row: int
    title: str = ""
    weight: float = 1.0
    attributes: bytes | None = None


@dataclass
class _Newest:
    """The newest update of each item; embeddings (rows, D) float32 in ``file``."""

    dimension: int
    file: IO[bytes]
    items: dict[bytes, _Item] = field(default_factory=dict)
    rows: int = 0

    def take(self, updates: UpdateBatch, number: int, embedding: npt.NDArray[np.float32] | None) -> None:
        """Take the update at place ``number`` of a batch."""
        record, item_id = updates.records[number], updates.ids[number]
        place = (updates.stamps[number], record.partition(), record.offset())
        known = self.items.get(item_id)
        if known is not None and _older(place, known.place):
            return
        if embedding is None:
            self.items[item_id] = _Item(place, -1)
            return
        row = known.row if known is not None and known.row >= 0 else self.rows
        self.rows = max(self.rows, row + 1)
        self.file.seek(4 * self.dimension * row)
        self.file.write(embedding.astype("<f4").tobytes())
        self.items[item_id] = _Item(
            place, row, updates.titles[number], updates.weights[number], updates.attributes[number]
        )


def export_catalogue(
    settings: Settings,
    directory: Path,
    *,
    dimension: int,
    norms: tuple[float, ...] | None = None,
    embedding_model: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Writes the catalogue folder ``directory``. ``dimension``: D of the embeddings; ``norms``: those that a bundle expects;
    ``embedding_model``: the bundle's; ``progress``: offsets read, of how many.

    Raises:
        SidstreamError: there is a catalogue already, or no item at all.
        LogReadError: the broker does not answer.
        RegistryAwayError: the schema registry does not.
    """
    if directory.exists() and any(directory.iterdir()):
        raise SidstreamError(f"{directory} is not empty: name a directory that is not there yet")
    topic, now = settings.topics.item_updates, int(time.time() * 1000)
    limits = UpdateLimits.of(settings.assigner, dimension, settings.attributes.rules(), embedding_model)
    intake = UpdateIntake(limits, formats=formats_of(settings, rows=True))
    plausible = PlausibleNorms.of(norms)
    refused: Counter[str] = Counter()
    others = 0
    consumer = end_reader(settings, "catalogue")
    with TemporaryFile() as file:
        newest = _Newest(dimension, file)
        try:
            spans = whole_topics(consumer, [topic])
            total, done = sum(map(len, spans.values())), 0
            reached = {place: span.first for place, span in spans.items()}
            for reading in read_spans(consumer, spans, size=_READ_AT_ONCE):
                others += _take(newest, intake, plausible, reading.records, now, refused)
                for place, offset in reading.positions.items():
                    done += offset - reached[place]
                    reached[place] = offset
                if progress is not None:
                    progress(done, total)
        finally:
            consumer.close()
        live = sorted(item_id for item_id, item in newest.items.items() if item.row >= 0)
        if not live:
            raise SidstreamError(f"{topic} holds no item that can be used: publish some first")
        file.flush()
        found = np.memmap(file, dtype="<f4", mode="r", shape=(newest.rows, dimension))
        kept = [newest.items[item_id] for item_id in live]
        Catalogue(
            items=tuple(
                CatalogueItem(
                    id=item_id.decode(),
                    title=item.title,
                    weight=item.weight,
                    attributes={} if item.attributes is None else _DECODE_ATTRIBUTES(item.attributes),
                )
                for item_id, item in zip(live, kept, strict=True)
            ),
            embeddings=np.asarray(found[[item.row for item in kept]], dtype=np.float32),
        ).write(directory)
    return Exported(len(live), refused, others)


def _take(
    newest: _Newest,
    intake: UpdateIntake,
    plausible: PlausibleNorms,
    records: list[Message],
    now: int,
    refused: Counter[str],
) -> int:
    """Takes what can be used; how many were passed over."""
    updates = intake.read_batch(records, now)
    refused.update(error.kind for _, error in updates.rejected)
    upserts, matrix, checked = updates.checked_embeddings(newest.dimension, plausible)
    faults = checked.faults
    refused.update(fault.kind for fault in faults.values())
    rows = {place: row for row, place in enumerate(upserts)}
    for place in range(len(updates.ids)):
        row = rows.get(place)
        if row not in faults:
            newest.take(updates, place, None if row is None else matrix[row])
    return updates.others


def _older(place: tuple[int, int, int], known: tuple[int, int, int]) -> bool:
    """Whether an update counts less: in one partition the later offset counts, as for the assigner; across them the time."""
    return place[2] < known[2] if place[1] == known[1] else place < known
