"""A table that changes, followed: what is new or other than before is published, once, and goes on after a restart.

What must hold: after a look that refused nothing the topic has every item as the files have it. A file is read again when its
signature is another one; its rows are compared with what was sent; a file that cannot be read is told, and tried again when it
has changed. Each batch is sent exactly once (``follow_state``, ``counted_batches``). Where several files have an id, the one that
was read last counts; where that one has it no more, the one that was read last of the others, which is read again for it. An
item is missing when no file has it, and nothing counts as missing while a file is not read as it is now, or has a row without an
id, which may be any item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
                nameless = self._read(file, opened, found, advance)
                after = file.location.signature()
            except DataFileError as error:
                found.unreadable.append(str(error))
                self._failed[file.name] = signature
                continue
            self._failed.pop(file.name, None)
            # It was written meanwhile: it counts as read when a later look finds it as it is now.
            self._state.end_file(opened, signature if after == signature else "", nameless=nameless)
            found.waiting += after != signature
            found.files.append(file.name)
        self._seen = signatures
        if files:
            for name in known.keys() - {file.name for file in files}:
                self._state.lose_file(known[name])
                self._missing_unknown = True
        self._missing_unknown |= bool(found.files)
        if self._missing_unknown and files and self._all_read(signatures, found):
            by_name = {file.name: file for file in files}
            if self._pass_on(by_name, found, advance):
                if not self._state.any_nameless():
                    self._missing(found)
                self._state.sweep()
                self._missing_unknown = False
        return found

    def _all_read(self, signatures: Mapping[str, str], found: FollowedLook) -> bool:
        """Whether every file was read as it is now: what another one may have yet is not missing."""
        failed = any(self._failed.get(name) == signature for name, signature in signatures.items())
        return not (failed or found.unreadable or found.waiting)

    def _files(self, found: FollowedLook) -> list[TableFile]:
        """The files that are there; none, and why, where there is no table now."""
        try:
            return table_files(Location.of(self._source))
        except DataFileError as error:
            if self._failed.get(self._source) != str(error):
                found.unreadable.append(str(error))
                self._failed[self._source] = str(error)
            return []

    def _read(self, file: TableFile, opened: FollowedFile, found: FollowedLook, advance: Callable[[int], None]) -> bool:
        """Reads a file; whether a row of it has no id that can be read."""
        nameless = 0
        for rows in self._rows(file):
            found.faults.add(rows.faults)
            self._state.saw_refused(rows.ids_at_fault, opened)
            nameless += len(rows.faults) - len(rows.ids_at_fault)
            if self._dimension is None and rows.embeddings is not None and len(rows.embeddings):
                self._dimension = rows.embeddings.shape[1]
                self._state.note_dimension(self._dimension)
            self._publish(rows, opened, found)
            advance(len(rows.items))
        if nameless:
            self._state.saw_all(opened)
        return nameless > 0

    def _pass_on(self, files: Mapping[str, TableFile], found: FollowedLook, advance: Callable[[int], None]) -> bool:
        """Items whose file has them no more are of the file that was read last of the others now, as that one has them; whether
        all such files could be read.
        """
        state = self._state
        if not state.knows_elsewhere:
            # Which one was read last is not known of these: by their names, as a look reads them.
            for one in sorted(state.files().values(), key=lambda one: one.name, reverse=True):
                if one.name not in found.files and not self._read_again(files[one.name], one, found, advance):
                    return False
            state.note_elsewhere()
        while (heir := state.heir()) is not None:
            if not self._read_again(files[heir.name], heir, found, advance):
                return False
            state.inherit(heir)
        return True

    def _read_again(
        self, file: TableFile, known: FollowedFile, found: FollowedLook, advance: Callable[[int], None]
    ) -> bool:
        """Reads a file that is as it was, for items that no file which was read later has; whether it could be."""
        again, nameless = self._state.begin_again(known), 0
        passed_on = FollowedLook()  # its faults and what is as before were told when it was read
        try:
            as_it_was = file.location.signature() == known.signature
            if as_it_was:
                for rows in self._rows(file):
                    settled = self._state.settled([*(item.id for item in rows.items), *rows.ids_at_fault], known)
                    self._state.saw_elsewhere(list(settled), known)
                    self._state.saw_refused([one for one in rows.ids_at_fault if one not in settled], again)
                    nameless += len(rows.faults) - len(rows.ids_at_fault)
                    self._publish(rows, again, passed_on, settled)
                    advance(len(rows.items))
                as_it_was = file.location.signature() == known.signature
                self._state.note_nameless(known, nameless=nameless > 0)
                if file.name not in found.files:
                    found.files.append(file.name)
        except DataFileError as error:
            found.unreadable.append(str(error))
            return False
        finally:
            found.new += passed_on.new
            found.changed += passed_on.changed
        found.waiting += not as_it_was
        return as_it_was

    def _rows(self, file: TableFile) -> Iterator[ItemRows]:
        table = ItemTable(self._source, [file], self._options.columns, mapped=False)
        return table.rows_of(file, embeddings=self._encoder is None, dimension=self._dimension)

    def _publish(
        self, rows: ItemRows, file: FollowedFile, found: FollowedLook, settled: Collection[str] = frozenset()
    ) -> None:
        """Publishes what is other than before; but for items that are ``settled``."""
        # Of an id that stands twice, the last row.
        last = {item.id: place for place, item in enumerate(rows.items) if item.id not in settled}
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
        as_before = [item for item, digest in digests.items() if known.get(item) == digest]
        taken = {*other, *as_before}
        self._state.saw(as_before, file)
        self._state.saw_refused([item for item in last if item not in taken], file)
        topic = self._settings.topics.item_updates
        changes = [ItemChange(item, digests[item], file.number, file.reading) for item in other]
        self._send([(topic, item.encode(), values[item]) for item in other], changes)
        new = sum(item not in known for item in other)
        found.new += new
        found.changed += len(other) - new
        found.as_before += len(as_before)

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
