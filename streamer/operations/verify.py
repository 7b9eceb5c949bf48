"""The full check of an index of this machine, alone or against another one. Reads; changes nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from store.checks.verification import Comparison, compare, verify
from store.errors import IndexAccessError
from store.files.data_file import require_sound_pages
from store.files.environment import DATA_FILE, writer_of
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from streamer.shards.partitions import numbers_of, text_of


class ComparedIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The other index, and how its items differ; where its position is another one, some must."""

    index: str
    items: int
    position: dict[str, int]
    digest: str
    comparison: Comparison


class SplitKey(msgspec.Struct, frozen=True):
    """A key with records in several partitions, and which ones."""

    id: str
    partitions: tuple[int, ...]


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What ``sidstream verify`` shows. ``position``: the next offset per ``topic/partition``; times in ms since 1970.

    ``partitions``: those of the topic of codes that the index holds; empty: all.
    """

    index: str
    codebook: str
    items: int
    generation: int | None
    last_write: int
    position: dict[str, int]
    digest: str
    faults: tuple[str, ...]
    split_keys: int = 0
    split_key_examples: tuple[SplitKey, ...] = ()
    against: ComparedIndex | None = None
    partitions: str = ""

    @property
    def sound(self) -> bool:
        return not self.faults and (self.against is None or self.against.comparison.equal)


def examine(index: Path, against: Path | None = None, *, examples: int = 5) -> Examination:
    """Hold paths, items, ids, census, free numbers, split keys and commit log against each other, and the items against those
    of another index.

    The index may be written meanwhile: everything is read from one snapshot, and pages freed since are not reused until
    it ends.

    Raises:
        IndexMissingError: there is no index, or an older sidstream made it.
    """
    for directory in (index, *([against] if against is not None else [])):
        data = directory / DATA_FILE
        if data.is_file() and data.stat().st_size and writer_of(directory) is None:
            require_sound_pages(data)  # before LMDB comes upon what it does not survive
    with IndexReader(index) as reader, reader.snapshot() as snapshot:
        faults = (*verify(snapshot), *_of_other_partitions(snapshot))
        layout = snapshot.live_layout()
        return Examination(
            index=str(index),
            codebook=snapshot.codebook_id,
            items=snapshot.item_count,
            generation=layout.generation if layout is not None else None,
            last_write=snapshot.last_commit_at,
            position=_position(snapshot),
            digest=_digest(snapshot, faults),
            faults=faults,
            split_keys=snapshot.split_keys,
            split_key_examples=tuple(
                SplitKey(item_id.decode("utf-8", "backslashreplace"), tuple(partitions))
                for item_id, partitions in snapshot.split_key_examples(examples)
            ),
            against=_against(snapshot, against, examples) if against is not None else None,
            partitions=snapshot.partitions,
        )


def _of_other_partitions(snapshot: Snapshot) -> list[str]:
    """What a shard holds that is none of its business."""
    held = numbers_of(snapshot.partitions)
    if not held:
        return []
    faults = []
    items = {partition: count for partition, count in snapshot.items_by_partition().items() if partition not in held}
    if items:
        faults.append(
            f"{sum(items.values())} items came from the partitions {text_of(items)}, and the index holds {snapshot.partitions}."
        )
    read = {f"{topic}/{number}" for topic, number in snapshot.position if number not in held and number > 0}
    if read:
        faults.append(
            f"The index, which holds the partitions {snapshot.partitions}, was read from {', '.join(sorted(read))}."
        )
    return faults


def _against(here: Snapshot, directory: Path, examples: int) -> ComparedIndex:
    with IndexReader(directory) as reader, reader.snapshot() as there:
        return ComparedIndex(
            index=str(directory),
            items=there.item_count,
            position=_position(there),
            digest=there.digest(),
            comparison=compare(here, there, examples=examples),
        )


def _digest(snapshot: Snapshot, faults: tuple[str, ...]) -> str:
    try:
        return snapshot.digest()
    except (IndexAccessError, ValueError):
        if not faults:
            raise
        return ""  # the faults say what is missing


def _position(snapshot: Snapshot) -> dict[str, int]:
    return {f"{topic}/{partition}": offset for (topic, partition), offset in snapshot.position.items()}
