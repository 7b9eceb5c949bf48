"""The headers of a record, read in one guarded way."""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from typing import Final

from confluent_kafka import Message

_HEADER_OVERHEAD_BYTES: Final = 10  # two lengths as varints
# Called from Python's own bytecode, ``headers()`` may return with its exception still pending, once that call site is
# specialised (CPython 3.11): the null pointer in its list then ends the process. A call from C is always checked.
_READ_HEADERS: Final = methodcaller("headers")
# Stands for the headers of a record that cannot be read; told by identity.
_UNREADABLE: Final[list[tuple[str, bytes | None]]] = []


class UnreadableHeadersError(ValueError):
    """A header's name is not UTF-8: the client cannot say what the headers are."""


def headers_of(record: Message) -> Sequence[tuple[str, bytes | None]]:
    """The headers of a record; read them by this function alone.

    Raises:
        UnreadableHeadersError: a name is not UTF-8, at each call. Any producer can write such a record; the client answers
            its first ``headers()`` with a SystemError, which would end the process again and again, and the next one
            with a list that holds a null pointer.
    """
    try:
        headers: Sequence[tuple[str, bytes | None]] | None = _READ_HEADERS(record)
    except SystemError:
        record.set_headers(_UNREADABLE)
        headers = _UNREADABLE
    if headers is _UNREADABLE:
        raise UnreadableHeadersError("the name of a header is not UTF-8")
    return headers or ()


def all_headers(records: Sequence[Message]) -> list[object | None]:
    """For each record None if it has no headers; anything else: ask ``headers_of``, which may refuse them."""
    found: list[object | None] = []
    rest = iter(records)
    while len(found) < len(records):
        try:
            found.extend(map(_READ_HEADERS, rest))  # what came before one that cannot be read is kept
        except SystemError:
            records[len(found)].set_headers(_UNREADABLE)
            found.append(_UNREADABLE)
    return found


def size_of_headers(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Bytes of names and contents on the wire."""
    return sum(len(name.encode()) + len(content or b"") + _HEADER_OVERHEAD_BYTES for name, content in headers)
