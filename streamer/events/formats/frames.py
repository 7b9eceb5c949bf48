"""Values that name their schema in a registry (Confluent's wire format), and who reads them: the protocol alone, no client.

A frame is a magic byte 0 and the schema's id (4 bytes), or a magic byte 1 and its GUID (16 bytes), before the value or, the
value untouched, in the header ``__value_schema_id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from models.errors import SidstreamError

SCHEMA_HEADER: Final = "__value_schema_id"
FRAMED: Final = frozenset({b"\x00", b"\x01"})  # a value that begins so is neither JSON nor a MessagePack map
Side = Literal["key", "value"]


class FormatError(ValueError):
    """A value that cannot be turned into a plain one; ``kind`` goes into the dead letter's ``dlq.errors.class``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RegistryAwayError(SidstreamError):
    """The registry does not answer, or not as one: nothing is known against the value, so it is read again later."""


class SchemaReader(Protocol):
    """Reads framed values by the schemas that they name."""

    def plain(
        self, topic: str, content: bytes, headers: Sequence[tuple[str, bytes | None]], side: Side = "value"
    ) -> bytes:
        """The content as plain JSON or MessagePack: a map, or of a key perhaps a single value.

        Raises:
            FormatError: an unknown schema, or bytes that are not as their schema says.
            RegistryAwayError: the registry cannot be asked.
        """
        ...


def said_frame(content: bytes) -> str | None:
    """The schema's id or GUID in a frame, for a person; None: it is none.

    >>> said_frame(bytes([0, 0, 0, 0, 7]) + b"...")
    'schema id 7'
    """
    if content[:1] == b"\x00" and len(content) >= 5:
        return f"schema id {int.from_bytes(content[1:5])}"
    if content[:1] == b"\x01" and len(content) >= 17:
        return f"schema GUID {content[1:17].hex()}"
    return None
