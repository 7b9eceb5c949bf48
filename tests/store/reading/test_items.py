"""Items of a snapshot: in the order asked for, and none that is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from store.errors import IndexUsageError
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of

OpenWriter = Callable[..., IndexWriter]


def test_items_come_in_the_order_asked_for_and_foreign_numbers_are_refused(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"%d" % number, (number, 0, 0), float(number)) for number in range(5)]), {})
    with writer.snapshot() as snapshot:
        items = snapshot.items([3, 1, 3])
        assert [item.number for item in items] == [3, 1, 3]
        assert [item.weight for item in items] == [3.0, 1.0, 3.0]
        assert snapshot.items([]) == []
        with pytest.raises(IndexUsageError, match="1 of 2 item numbers"):
            snapshot.items([1, 99])


def test_find_answers_in_order_with_none_for_unknown_empty_and_overlong_ids(open_writer: OpenWriter) -> None:
    writer = open_writer()
    writer.apply(batch_of([Event(b"a", (1, 2, 3)), Event(b"b", (1, 2, 3))]), {})
    with writer.snapshot() as snapshot:
        found = snapshot.find([b"b", b"nobody", b"a", b"", b"x" * 600, b"b"])
        assert [item.id if item else None for item in found] == [b"b", None, b"a", None, None, b"b"]
        assert snapshot.find([]) == []
