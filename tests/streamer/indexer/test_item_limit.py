"""The limit of items, as far as it bounds attributes of ids without an item: what counts, what is refused, what is advised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.attributes import Attributes, encode_attributes
from store.writing.writer import IndexWriter
from streamer.events.intake import AttributesUpdate
from streamer.indexer.item_limit import ItemLimit
from streamer.indexer.letters import Letters
from streamer.indexer.rebuild import RebuildError, _require_within
from streamer.settings import Settings, load_settings
from support.plain_index import CODEBOOK, AttributesEvent, Event, attributes_batch_of, batch_of

PRICE: Attributes = {"price": 1.0}


class Refused:
    """Stands for the dead letters: which ids' records went there."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.messages: list[str] = []

    def send(self, _topic: str, refused: Sequence[Any]) -> None:
        self.ids += [record.item_id for record, _ in refused]
        self.messages += [rejection.message for _, rejection in refused]


@pytest.fixture
def limited() -> Settings:
    return load_settings(indexer={"maximum_items": 3})


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[IndexWriter]:
    with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=3, size=16) as opened:
        yield opened


def admitted(settings: Settings, writer: IndexWriter, *events: AttributesEvent) -> Refused:
    """Stores what the limit lets through."""
    refused = Refused()
    updates = [
        AttributesUpdate(
            cast("Any", SimpleNamespace(item_id=event.id)),
            event.id,
            None if event.attributes is None else encode_attributes(event.attributes),
        )
        for event in events
    ]
    left = [
        update.item_id for update in ItemLimit(settings, writer, cast("Letters", refused)).admit_attributes(updates)
    ]
    kept = [event for event in events if event.id in left]
    writer.apply_attributes(attributes_batch_of(kept), {})
    return refused


def test_items_that_came_and_went_with_their_attributes_leave_room_for_attributes(
    limited: Settings, writer: IndexWriter
) -> None:
    """As ``ItemPublisher.delete`` does it: a null value to both topics, and the removals stay for a week."""
    for generation in range(3):
        ids = [b"%d-%d" % (generation, number) for number in range(3)]
        writer.apply(batch_of([Event(item_id, (1, 2, 3)) for item_id in ids]), {})
        assert admitted(limited, writer, *(AttributesEvent(item_id, PRICE) for item_id in ids)).ids == []
        assert admitted(limited, writer, *(AttributesEvent(item_id, None) for item_id in ids)).ids == []
        writer.apply(batch_of([Event(item_id, None) for item_id in ids]), {})
    with writer.snapshot() as snapshot:
        assert (snapshot.item_count, snapshot.attribute_record_count) == (0, 9)
        _require_within(limited, snapshot.item_count, writer.waiting_attributes())
    assert admitted(limited, writer, *(AttributesEvent(b"new-%d" % number, PRICE) for number in range(3))).ids == []
    assert writer.waiting_attributes() == 3


def test_only_attributes_of_further_ids_without_an_item_are_refused_once_as_many_wait_as_may(
    limited: Settings, writer: IndexWriter
) -> None:
    writer.apply(batch_of([Event(b"item", (1, 2, 3))]), {})
    waiting = [AttributesEvent(b"%d" % number, PRICE) for number in range(3)]
    assert admitted(limited, writer, AttributesEvent(b"item", PRICE), *waiting).ids == []
    refused = admitted(
        limited,
        writer,
        AttributesEvent(b"one-more", PRICE),
        AttributesEvent(b"item", {"price": 2.0}),
        AttributesEvent(b"0", {"price": 2.0}),
        AttributesEvent(b"nobody", None),
        AttributesEvent(b"1", None),
        AttributesEvent(b"in-its-place", PRICE),
        AttributesEvent(b"too-late", PRICE),
    )
    assert refused.ids == [b"one-more", b"too-late"]
    assert "null value" in refused.messages[0]
    assert writer.waiting_attributes() == 3
    writer.apply(batch_of([Event(b"0", (1, 2, 3))]), {})
    assert writer.waiting_attributes() == 2, "its item has come"


def test_rebuild_advises_what_makes_room(limited: Settings) -> None:
    _require_within(limited, 3, 3)
    _require_within(load_settings(), 4, 4)
    with pytest.raises(RebuildError, match=r"4 items, .* allows 3: raise it, or delete items"):
        _require_within(limited, 4, 0)
    with pytest.raises(RebuildError, match=r"4 ids with attributes and no item, .* null value in item-attributes"):
        _require_within(limited, 3, 4)
