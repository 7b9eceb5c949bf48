"""Which dead letters were replayed: a position, and what is left below the furthest letter, in the group's own offsets.

A replay may leave letters out (a filter, an update that is out of date), so a position alone would lose them. What is left
above the position is kept in the metadata that Kafka stores with a committed offset: one record, one transaction.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from models.errors import SidstreamError

# A broker's offset.metadata.max.bytes unless someone has changed it.
MAXIMUM_METADATA_BYTES: Final = 4_096
_MAXIMUM_SPAN: Final = 50_000_000
_FORMAT: Final = "1"


class ReplayStateError(SidstreamError):
    """What was replayed cannot be written down, or not be read."""


@dataclass(frozen=True)
class ReplayState:
    """Of one partition: every letter below ``scanned`` was replayed but those at the offsets in ``left``."""

    scanned: int = 0
    left: frozenset[int] = frozenset()

    def was_replayed(self, offset: int) -> bool:
        return offset < self.scanned and offset not in self.left

    @property
    def position(self) -> int:
        """The offset to commit: the first that is not done. Any tool then shows what is left as the group's lag."""
        return min(self.left, default=self.scanned)

    def metadata(self) -> str:
        """What is left from ``position`` on: a compressed bit an offset, 1 = done.

        Raises:
            ReplayStateError: what is left is too scattered for the room that a broker gives.
        """
        bits = self.scanned - self.position
        if bits == 0:
            return ""
        done = np.ones(bits, np.bool_)
        done[np.fromiter(self.left, np.int64, len(self.left)) - self.position] = False
        packed = zlib.compress(np.packbits(done).tobytes(), 9)
        text = f"{_FORMAT}:{bits}:{base64.b85encode(packed).decode()}"
        if len(text) > MAXIMUM_METADATA_BYTES:
            raise ReplayStateError(
                f"the {len(self.left):,} letters that would be left lie too scattered over {bits:,} offsets to be "
                "remembered: replay with a wider filter, or the oldest ones first (--limit)"
            )
        return text

    @classmethod
    def parse(cls, position: int, metadata: str | None) -> Self:
        """The state of a committed offset; offsets that another tool has set have no metadata and count as they are.

        Raises:
            ReplayStateError: metadata of a newer sidstream, or of someone else.
        """
        if position < 0:
            return cls()
        if not metadata:
            return cls(position)
        try:
            form, number, text = metadata.split(":", 2)
            bits = int(number)
            if form != _FORMAT or not 0 < bits <= _MAXIMUM_SPAN:
                raise ValueError(f"format {form}, {bits} offsets")
            whole = -(-bits // 8)
            inflated = zlib.decompressobj().decompress(base64.b85decode(text), whole + 1)
            if len(inflated) != whole:
                raise ValueError(f"{len(inflated)} bytes for {bits} offsets")
            done = np.unpackbits(np.frombuffer(inflated, np.uint8), count=bits)
        except (ValueError, binascii.Error, zlib.error) as error:
            raise ReplayStateError(
                f"what was replayed cannot be read ({error}): a newer sidstream or another program has written it. Update "
                "sidstream, or start over with --again"
            ) from None
        return cls(position + bits, frozenset((np.flatnonzero(done == 0) + position).tolist()))
