"""What has to be written so that every key of a topic lies in one partition, its own, and nobody notices. Pure.

The item that a key stands for is that of its *newest* record: of each partition counts the last record by offset, and of
these the one with the greatest (Kafka time, partition), as the index has it. A *move* appends that record to the key's own
partition, with its time, and leaves a tombstone behind in each other partition that still shows a state. The tombstones
have a time before all others, so whatever order the partitions are read in, the moved record is the newest.

Producers go on meanwhile, and Kafka has no "append if nothing came in between": a record may land between our last look at
a partition and what we append there. By offset ours would then hide a newer one. So each of our records carries a note:
up to which offset its writer had read the partition, and what it is a copy of. A later look that finds a record at or after
that offset, but before ours, takes it into account as if ours had come first, and appends it anew if it is the newest. The
broker must not compact such a record away until then (``min.compaction.lag.ms``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

# The Kafka time of a tombstone left behind, in milliseconds: it must never be the newest. 0 would be the time of producing.
LEFT_BEHIND_AT: Final = 1
_EARLIEST: Final = LEFT_BEHIND_AT + 1


class Origin(NamedTuple):
    """Where the record that somebody published lay, and its Kafka time in milliseconds."""

    time: int
    partition: int
    offset: int


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Header of a record that a move wrote. ``origin``: what it is a copy of; ``None`` for a tombstone left behind."""

    read_to: int
    origin: Origin | None = None

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, header: bytes) -> Note | None:
        """``None`` for what no move wrote: such a record is anybody's."""
        try:
            return _NOTES.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


_NOTES: Final = msgspec.json.Decoder(Note)


class Sighting(NamedTuple):
    """One record of a key, as it lies in the log. ``time``: its Kafka time in milliseconds."""

    partition: int
    offset: int
    time: int
    deleted: bool
    note: Note | None = None


class _Candidate(NamedTuple):
    """A record that may be the newest: as it was published (``origin``), and where it, or a copy of it, lies now."""

    origin: Origin
    partition: int
    offset: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Move:
    """To write at once: the newest record again into the partition ``home``, and tombstones into those of ``left_behind``.

    ``newest``: partition and offset where it lies now; ``copied``: false when ``home`` has it already.
    """

    home: int
    newest: tuple[int, int]
    origin: Origin
    deleted: bool
    copied: bool
    left_behind: tuple[int, ...]

    @property
    def time(self) -> int:
        """The Kafka time of the copy: its original's, later than that of what is left behind."""
        return max(self.origin.time, _EARLIEST)


@dataclass(slots=True)
class KeyHistory:
    """What is known of one key: the last record of each partition, and what may be the newest."""

    _last: dict[int, Sighting] = field(default_factory=dict)
    _candidates: list[_Candidate] = field(default_factory=list)

    def add(self, seen: Sighting) -> None:
        """Take in the key's records, those of one partition in the order of their offsets."""
        partition, note = seen.partition, seen.note
        self._last[partition] = seen
        # Ours takes the place of what its writer knew, anybody else's the place of all before it.
        known_to = seen.offset if note is None else note.read_to
        self._candidates = [
            one for one in self._candidates if one.partition != partition or known_to <= one.offset < seen.offset
        ]
        origin = Origin(seen.time, partition, seen.offset) if note is None else note.origin
        if origin is not None:
            self._candidates.append(_Candidate(origin, partition, seen.offset, seen.deleted))

    def move(self, home: int) -> Move | None:
        """What to write so that ``home`` has the newest record and no other partition shows a state; ``None``: nothing."""
        newest = self._newest(home)
        if newest is None:
            return None
        at_home = self._last.get(home)
        showing = [partition for partition, last in self._last.items() if not last.deleted]
        if newest.deleted:
            # A deletion needs no copy, unless a state at home would come back to light without it.
            copied = at_home is not None and not at_home.deleted
            behind = [partition for partition in showing if partition != home]
        else:
            copied = at_home is None or at_home.offset != newest.offset or newest.partition != home
            copied = copied or (at_home is not None and at_home.time < _EARLIEST)
            rank = (max(newest.origin.time, _EARLIEST), home)
            behind = [
                partition
                for partition, last in self._last.items()
                if partition != home and (not last.deleted or (last.time, partition) > rank)
            ]
        if not copied and not behind:
            return None
        place = (newest.partition, newest.offset)
        return Move(home, place, newest.origin, newest.deleted, copied, tuple(sorted(behind)))

    def _newest(self, home: int) -> _Candidate | None:
        # Of a partition that records were published into counts the last one, wherever its copies lie by now. Of a record
        # and its copies, the one to go by is the last at home.
        last: dict[int, _Candidate] = {}
        for candidate in sorted(
            self._candidates, key=lambda one: (one.origin.offset, one.partition == home, one.offset)
        ):
            last[candidate.origin.partition] = candidate
        return max(last.values(), key=lambda one: (one.origin.time, one.origin.partition), default=None)
