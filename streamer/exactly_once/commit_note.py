"""What is noted beside every committed offset, and what it tells at the next start: whether records were missed. Pure.

The note is a small JSON object in the metadata of the offset: ``{"at": ms, "logs": {topic: id}, …}``. ``at`` says when somebody
read there last, ``logs`` which logs the offset belongs to; a loop's ``commit_note`` may add fields of its own. Offsets that an
older sidstream committed have none; nothing is held against those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from streamer.events.topics import TOMBSTONE_RETENTION_MS

# The broker refuses metadata beyond offset.metadata.max.bytes, and the whole commit with it.
_MOST_BYTES: Final = 3_000
_DAY_MS: Final = 86_400_000


class CommitNote(msgspec.Struct, frozen=True):
    """``at``: ms since 1970, 0 when it is not known."""

    at: int = 0
    logs: dict[str, str] = {}


_DECODER: Final = msgspec.json.Decoder(CommitNote)


def encode_note(at: int, logs: Mapping[str, str], more: Mapping[str, Any]) -> str:
    """The metadata; without ``more`` when that is too large to be committed."""
    note: dict[str, Any] = {"at": at, "logs": dict(logs)}
    for candidate in ({**more, **note}, note, {"at": at}):
        encoded = msgspec.json.encode(candidate)
        if len(encoded) <= _MOST_BYTES:
            break
    return encoded.decode()


def parse_note(metadata: str | None) -> CommitNote:
    """The note of a committed offset; one that knows nothing if there is none, or it is another program's."""
    try:
        return _DECODER.decode(metadata or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return CommitNote()


@dataclass(frozen=True)
class Standing:
    """One partition at the moment that it is taken up. ``committed``: the next offset to read, ``None`` if none is committed;
    ``first`` and ``end``: what the log holds now."""

    topic: str
    partition: int
    committed: int | None
    note: CommitNote
    first: int
    end: int

    @property
    def start(self) -> int:
        """Where to read on: the first offset of a log that does not hold the committed one."""
        return self.committed if self.committed is not None and self.first <= self.committed <= self.end else self.first


def replaced_logs(standings: Sequence[Standing], logs: Mapping[str, str]) -> list[str]:
    """Topics that have another id in ``logs`` than when the offsets were committed."""
    return sorted(
        {topic for standing in standings for topic, log in standing.note.logs.items() if logs.get(topic, log) != log}
    )


def missed(standings: Sequence[Standing], now_ms: int) -> list[str]:
    """What was missed in standings whose log is still the same, a sentence for each."""
    sentences = []
    for standing in standings:
        if standing.committed is None:
            continue
        where = f"{standing.topic}/{standing.partition}"
        age_ms = now_ms - standing.note.at
        if standing.committed < standing.first:
            sentences.append(
                f"{standing.first - standing.committed:,} offsets of {where} were deleted before they were read: the group "
                f"stood at {standing.committed}, and the log begins at {standing.first}"
            )
        elif standing.committed > standing.end:
            sentences.append(
                f"the group stands at offset {standing.committed} of {where}, which ends at {standing.end}: the log was cut"
            )
        elif standing.note.at and standing.committed < standing.end and age_ms > TOMBSTONE_RETENTION_MS:
            sentences.append(
                f"{where} was last read {age_ms / _DAY_MS:.0f} days ago, and deletions are kept for "
                f"{TOMBSTONE_RETENTION_MS // _DAY_MS}: those in between may be compacted away"
            )
    return sentences
