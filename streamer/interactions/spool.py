"""Records on the disk in parts, so that more of them than memory holds are grouped by a key: one portion at a time is read.

What must hold: all records of a key lie in one portion, and portions follow one another by a hash of the key: what is written
portion by portion, and by that hash within one, has one order, however many there are. A portion takes so many bytes, unless one
key alone has more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

RECORDS_A_PART: Final = 50_000
"""So many that their Python objects take some 50 MB."""
BYTES_A_PORTION: Final = 16 * 1024 * 1024
"""Of a part whose records are larger than they usually are, so much is read at once."""
_MOST_PARTS: Final = 4_096
_BYTES_BUFFERED: Final = 16 * 1024
_PLACE_BYTES: Final = 8
_LENGTH_BYTES: Final = 4
Record = TypeVar("Record")


def place_of(key: str) -> int:
    """Where a key stands among all: 64 bits, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=_PLACE_BYTES).digest())


def parts_for(records: int) -> int:
    """How many parts about so many records need."""
    return min(_MOST_PARTS, max(1, -(-records // RECORDS_A_PART)))


class Spool(Generic[Record]):
    """Takes records and gives them back part by part. ``kind``: their type; ``parts``: as ``parts_for`` says, or as another spool
    has that is read together with this one.
    """

    def __init__(self, directory: Path, kind: type[Record], parts: int) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self.parts = parts
        self._buffers: dict[int, bytearray] = {}
        self._sizes: dict[int, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def add(self, key: str, record: Record) -> None:
        """Into the part of its key."""
        place = place_of(key)
        part = place * self.parts >> 64
        encoded: bytes = self._encode(record)
        buffer = self._buffers.setdefault(part, bytearray())
        buffer += len(encoded).to_bytes(_LENGTH_BYTES, "little") + place.to_bytes(_PLACE_BYTES, "little") + encoded
        self._sizes[part] = self._sizes.get(part, 0) + len(encoded)
        if len(buffer) >= _BYTES_BUFFERED:
            self._flush(part)

    def portions(self, part: int) -> int:
        """In how many portions a part is to be read."""
        return max(1, -(-self._sizes.get(part, 0) // BYTES_A_PORTION))

    def read(self, part: int, portion: int = 0, portions: int = 1) -> Iterator[Record]:
        """The records of a portion of a part, in the order in which they came."""
        self._flush(part)
        path = self._path(part)
        if not path.exists():
            return
        finer, wanted = self.parts * portions, part * portions + portion
        with path.open("rb") as file:
            while head := file.read(_LENGTH_BYTES + _PLACE_BYTES):
                encoded = file.read(int.from_bytes(head[:_LENGTH_BYTES], "little"))
                if int.from_bytes(head[_LENGTH_BYTES:], "little") * finer >> 64 == wanted:
                    record: Any = self._decode(encoded)
                    yield record

    def _flush(self, part: int) -> None:
        buffer = self._buffers.pop(part, None)
        if buffer:
            with self._path(part).open("ab") as file:
                file.write(buffer)

    def _path(self, part: int) -> Path:
        return self._directory / f"part-{part:04}"


def read_together(*spools: Spool[Any]) -> Iterator[tuple[Iterator[Any], ...]]:
    """The portions of spools that have as many parts, side by side: what has the same key comes together."""
    for part in range(spools[0].parts):
        portions = max(spool.portions(part) for spool in spools)
        for portion in range(portions):
            yield tuple(spool.read(part, portion, portions) for spool in spools)
