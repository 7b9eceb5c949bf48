"""Records on the disk in parts, so that more of them than memory holds are grouped by a key: one part at a time is read.

What must hold: all records of a key lie in one part, and parts follow one another by a hash of the key: what is written part by
part, and by that hash within a part, has one order, however many parts there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

RECORDS_A_PART: Final = 50_000
"""So many that their Python objects take some 50 MB."""
_MOST_PARTS: Final = 4_096
_BYTES_BUFFERED: Final = 16 * 1024
_LENGTH_BYTES: Final = 4
Record = TypeVar("Record")


def place_of(key: str) -> int:
    """Where a key stands among all: 64 bits, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest())


def parts_for(records: int) -> int:
    """How many parts about so many records need."""
    return min(_MOST_PARTS, max(1, -(-records // RECORDS_A_PART)))


class Spool(Generic[Record]):
    """Takes records and gives them back part by part; ``kind``: their type; ``parts``: as of another spool whose
    keys are these, or as ``parts_for`` says.
    """

    def __init__(self, directory: Path, kind: type[Record], parts: int) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self.parts = parts
        self._buffers: dict[int, bytearray] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def add(self, key: str, record: Record) -> None:
        """Into the part of its key."""
        part = place_of(key) * self.parts >> 64
        encoded: bytes = self._encode(record)
        buffer = self._buffers.setdefault(part, bytearray())
        buffer += len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded
        if len(buffer) >= _BYTES_BUFFERED:
            self._flush(part)

    def part(self, number: int) -> Iterator[Record]:
        """The records of a part, in the order in which they came."""
        self._flush(number)
        path = self._path(number)
        if not path.exists():
            return
        with path.open("rb") as file:
            while length := file.read(_LENGTH_BYTES):
                record: Any = self._decode(file.read(int.from_bytes(length, "little")))
                yield record

    def _flush(self, part: int) -> None:
        buffer = self._buffers.pop(part, None)
        if buffer:
            with self._path(part).open("ab") as file:
                file.write(buffer)

    def _path(self, part: int) -> Path:
        return self._directory / f"part-{part:04}"
