"""What a sidstream before the topic ``dlq.replayed`` has noted of a replay: read, carried over, never written again.

It kept a position and the letters left above it, as a compressed bit an offset, in the metadata of a consumer group's
offsets. After the carry-over those offsets hold ``CARRIED_OVER``, which such a sidstream refuses: so it sends nothing twice.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from models.errors import SidstreamError

CARRIED_OVER: Final = "2:carried over to the topic dlq.replayed"
_MAXIMUM_SPAN: Final = 50_000_000
_FORMAT: Final = "1"


class OldProgressError(SidstreamError):
    """What an older sidstream has replayed cannot be read."""


@dataclass(frozen=True)
class OldProgress:
    """Of one partition: every letter below ``scanned`` was replayed but those at the offsets in ``left``."""

    scanned: int = 0
    left: frozenset[int] = frozenset()

    def was_replayed(self, offset: int) -> bool:
        return offset < self.scanned and offset not in self.left

    @classmethod
    def parse(cls, position: int, metadata: str | None) -> Self:
        """The state of a committed offset; offsets that another tool has set have no metadata and count as they are.

        Raises:
            OldProgressError: the metadata is someone else's.
        """
        if position < 0 or metadata == CARRIED_OVER:
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
            raise OldProgressError(
                f"what was replayed cannot be read ({error}): another program has written it. Start over with --again"
            ) from None
        return cls(position + bits, frozenset((np.flatnonzero(done == 0) + position).tolist()))
