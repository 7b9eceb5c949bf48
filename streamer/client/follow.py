"""A table that changes, followed: what is new or other than before is published, once, and goes on after a restart.

What must hold: after a look that refused nothing the topic has every item as the files have it. A file is read again when its
signature is another one; its rows are compared with what was sent; a file that cannot be read is told, and tried again when it
has changed. Each batch is sent exactly once (``follow_state``, ``counted_batches``). Where two files have one id, the one that
was read last counts; once that one has lost it, the other does, which is read again for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from models.data_files import DataFileError
from models.tables.blocks import Fault
from models.tables.columns import ColumnNames
from models.tables.item_rows import ItemRows
from models.tables.item_table import Faults, ItemTable
from models.tables.locations import Location
from models.tables.table_files import TableFile, table_files
from streamer.client.counted_batches import CountedBatches, Record
from streamer.client.follow_state import FollowedFile, FollowState, ItemChange
from streamer.client.publisher import PublishError, UpdateValues
from streamer.client.table_publishing import embedded
from streamer.kafka.admin import require
from streamer.kafka.partition_watch import topic_states
from streamer.settings import Settings

if TYPE_CHECKING:
    from models.towers.text_encoder import TextEncoder

_LARGEST_BYTES: Final = 2 * 1024 * 1024 - 4_096  # of a value; a topic takes 2 MiB


@dataclass(frozen=True)
class FollowOptions:
    """How a table is followed. ``delete_missing``: items that no file has any more are deleted."""

    columns: ColumnNames = field(default_factory=ColumnNames)
    embedding_model: str | None = None
    delete_missing: bool = False


@dataclass
class FollowedLook:
    """What one look came to. ``files`` that were read; ``unreadable``: files that could not be, and why; ``missing``: items that
    no file has any more and that stay; ``waiting``: files that may still be written.
    """

    files: list[str] = field(default_factory=list)
    new: int = 0
    changed: int = 0
    as_before: int = 0
    deleted: int = 0
    missing: int = 0
    faults: Faults = field(default_factory=Faults)
    unreadable: list[str] = field(default_factory=list)
    waiting: int = 0

    @property
    def whole(self) -> bool:
        """Whether everything was taken."""
        return not self.faults.count and not self.unreadable

    @property
    def told(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.files or self.unreadable or self.deleted or self.missing)


class Follower:
    """Publishes what changes; get it from ``Follower.open``."""

    def __init__(
        self,
        settings: Settings,
        source: str,
        options: FollowOptions,
        state: FollowState,
        batches: CountedBatches,
        encoder: TextEncoder | None,
    ) -> None:
        self._settings, self._source, self._options = settings, source, options
        self._state, self._batches, self._encoder = state, batches, encoder
        self._rules = settings.attributes.rules()
        self._encoded = UpdateValues(settings)
        self._dimension = state.dimension
        self._seen: dict[str, str] = {}  # signatures of the look before
        self._failed: dict[str, str] = {}  # those of files that could not be read
        self._missing_unknown = True

    @classmethod
    @contextmanager
    def open(
        cls, settings: Settings, source: str, state: Path, options: FollowOptions, encoder: TextEncoder | None = None
    ) -> Iterator[Follower]:
        """``state``: the directory of what was published. A batch that a publisher before this one began is dealt with.

        Raises:
            FollowStateError: another process has the state, or it is of something else.
            DataFileError: of this address no changes can be told.
        """
        if source.startswith(("http://", "https://")):
            raise DataFileError(
                f"{source}: whether a file changes cannot be told at this kind of address; follow a copy of it"
            )
        topics = settings.topics
        needed = [topics.item_updates, *([topics.item_attributes] if settings.attributes.rules().types else [])]
        require(settings.kafka, needed)
        topic_id = topic_states(settings.kafka, [topics.item_updates])[topics.item_updates].topic_id
        facts = {
            "source": source if "://" in source else str(Path(source).resolve()),
            "topic": f"{topics.item_updates} {topic_id}",
        }
        with FollowState.open(state, facts) as opened, CountedBatches(settings, opened.identity) as batches:
            follower = cls(settings, source, options, opened, batches, encoder)
            follower._take_up()
            yield follower

    def _take_up(self) -> None:
        if (begun := self._state.open_batch()) is None:
            return
        number, changes = begun
        if self._batches.sent >= number:
            self._state.finish(number, changes)
        else:
            self._state.drop_batch()

    def look(self, *, settled: bool = True, advance: Callable[[int], None] = lambda _count: None) -> FollowedLook:
        """Reads what has changed since the look before, and publishes what is other than what was published.

        ``settled``: a file that has just appeared or changed waits for the next look, as somebody may be writing it; ``advance``
        hears of the rows of each block.

        Raises:
            PublishError: a batch was not sent; a new follower goes on from there.
        """
        found = FollowedLook()
        files = self._files(found)
        signatures = {}
        for file in files:
            try:
                signatures[file.name] = file.location.signature()
            except DataFileError as error:  # it has just gone
                found.unreadable.append(str(error))
        known = self._state.files()
        for file in files:
            signature = signatures.get(file.name)
            before = known.get(file.name)
            if signature is None or (before is not None and before.signature == signature):
                continue
            if settled and self._seen.get(file.name) != signature:
                found.waiting += 1
                continue
            if self._failed.get(file.name) == signature:
                continue
            try:
                opened = self._state.begin_file(file.name)
                self._read(file, opened, found, advance)
                after = file.location.signature()
            except DataFileError as error:
                found.unreadable.append(str(error))
                self._failed[file.name] = signature
                continue
            # It was written meanwhile: it counts as read when a later look finds it as it is now.
            self._state.end_file(opened, signature if after == signature else "")
            found.waiting += after != signature
            found.files.append(file.name)
        self._seen = signatures
        if files:
            for name, one in known.items():
                if name not in signatures and one.signature:
                    self._state.lose_file(one)
                    self._missing_unknown = True
        self._missing_unknown |= bool(found.files)
        # What another file may have yet is not missing.
        if self._missing_unknown and files and not found.unreadable and not found.waiting:
            self._missing_unknown = not self._look_for_missing(files, signatures, found, advance)
            if not self._missing_unknown:
                self._missing(found)
        return found

    def _look_for_missing(
        self,
        files: Sequence[TableFile],
        signatures: Mapping[str, str],
        found: FollowedLook,
        advance: Callable[[int], None],
    ) -> bool:
        """Asks the files that were not read now for items that theirs has lost; whether all could be asked."""
        known = self._state.files()
        for file in reversed(files):  # of several the last one counts, as where all are read
            if not self._state.any_lost():
                break
            if file.name in found.files:
                continue
            one = known.get(file.name)
            if one is None or one.signature != signatures.get(file.name):
                return False  # it could not be read as it is now
            again = FollowedLook()  # what else is to be told of it was told
            try:
                self._read(file, one, again, advance, lost_alone=True)
                is_same = file.location.signature() == one.signature
            except DataFileError as error:
                found.unreadable.append(str(error))
                return False
            found.changed += again.changed
            if not is_same:
                return False
        return True

    def _files(self, found: FollowedLook) -> list[TableFile]:
        """The files that are there; none, and why, where there is no table now."""
        try:
            return table_files(Location.of(self._source))
        except DataFileError as error:
            if self._failed.get(self._source) != str(error):
                found.unreadable.append(str(error))
                self._failed[self._source] = str(error)
            return []

    def _read(
        self,
        file: TableFile,
        opened: FollowedFile,
        found: FollowedLook,
        advance: Callable[[int], None],
        *,
        lost_alone: bool = False,
    ) -> None:
        """``lost_alone``: only of items that the file which had them has lost; all others stay as they are."""
        table = ItemTable(self._source, [file], self._options.columns, mapped=False)
        nameless = 0
        for rows in table.rows_of(file, embeddings=self._encoder is None, dimension=self._dimension):
            found.faults.add(rows.faults)
            at_fault = rows.ids_at_fault
            self._state.saw(self._state.lost_of(at_fault) if lost_alone else at_fault, opened)  # refused, and not gone
            nameless += len(rows.faults) - len(rows.ids_at_fault)
            if self._dimension is None and rows.embeddings is not None and len(rows.embeddings):
                self._dimension = rows.embeddings.shape[1]
                self._state.note_dimension(self._dimension)
            self._publish(rows, opened, found, lost_alone=lost_alone)
            advance(len(rows.items))
        if nameless and lost_alone:
            self._state.saw_lost(opened)
        elif nameless:
            self._state.saw_all(opened)

    def _publish(self, rows: ItemRows, file: FollowedFile, found: FollowedLook, *, lost_alone: bool) -> None:
        last = {item.id: place for place, item in enumerate(rows.items)}  # of an id that stands twice, the last row
        if lost_alone:
            last = {item: last[item] for item in self._state.lost_of(list(last))}
        values = self._values(rows, last, found) if self._encoder is None else {}
        digests = {
            item: _digest(values[item] if self._encoder is None else self._described(rows, place))
            for item, place in last.items()
            if self._encoder is not None or item in values
        }
        known = self._state.digests(list(digests))
        other = [item for item, digest in digests.items() if known.get(item) != digest]
        if self._encoder is not None:
            values = self._embedded_values(rows, {item: last[item] for item in other}, found)
            other = [item for item in other if item in values]
        self._state.saw((item for item in last if item not in set(other)), file)
        topic = self._settings.topics.item_updates
        changes = [ItemChange(item, digests[item], file.number, file.reading) for item in other]
        self._send([(topic, item.encode(), values[item]) for item in other], changes)
        new = sum(item not in known for item in other)
        found.new += new
        found.changed += len(other) - new
        found.as_before += len(digests) - len(other)

    def _values(self, rows: ItemRows, chosen: dict[str, int], found: FollowedLook) -> dict[str, bytes]:
        """The records of these rows; what nothing would take is told."""
        assert rows.embeddings is not None
        values = {}
        for item, place in chosen.items():
            row = rows.items[place]
            try:
                value = self._encoded.update(
                    item,
                    rows.embeddings[place],
                    title=row.title,
                    weight=row.weight,
                    attributes=row.attributes or None,
                    embedding_model=self._options.embedding_model,
                )
            except PublishError as error:
                found.faults.add([Fault(rows.file, rows.places[place], "", str(error))])
                continue
            if len(value) > _LARGEST_BYTES:
                found.faults.add(
                    [Fault(rows.file, rows.places[place], "", f"is {len(value):,} bytes, and a topic takes 2 MiB")]
                )
                continue
            values[item] = value
        return values

    def _embedded_values(self, rows: ItemRows, chosen: dict[str, int], found: FollowedLook) -> dict[str, bytes]:
        """The same of texts: only of rows that are other than before, as embedding costs most."""
        assert self._encoder is not None
        places = list(chosen.values())
        some = replace(
            rows, items=[rows.items[place] for place in places], places=[rows.places[place] for place in places]
        )
        kept, embeddings = embedded(some, len(places), self._encoder, found.faults)
        some = replace(
            some,
            items=[some.items[place] for place in kept],
            places=[some.places[place] for place in kept],
            embeddings=embeddings,
        )
        return self._values(some, {item.id: place for place, item in enumerate(some.items)}, found)

    def _described(self, rows: ItemRows, place: int) -> bytes:
        assert self._encoder is not None
        return msgspec.msgpack.encode((self._encoder.towers_id, rows.items[place]))

    def _missing(self, found: FollowedLook) -> None:
        """Items that no file has any more."""
        for ids in self._state.missing():
            if self._options.delete_missing:
                self._send(self._tombstones(ids), [ItemChange(item, b"", 0, 0) for item in ids])
                found.deleted += len(ids)
            else:
                self._state.note_gone(ids)
                found.missing += len(ids)

    def _tombstones(self, ids: Sequence[str]) -> list[Record]:
        topics = self._settings.topics
        records: list[Record] = [(topics.item_updates, item.encode(), None) for item in ids]
        if self._rules.types:  # an item that comes back would have the price of before
            records += [(topics.item_attributes, item.encode(), None) for item in ids]
        return records

    def _send(self, records: Sequence[Record], changes: Sequence[ItemChange]) -> None:
        if not changes:
            return
        number = self._state.begin(changes)
        self._batches.send(number, records)
        self._state.finish(number, changes)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
