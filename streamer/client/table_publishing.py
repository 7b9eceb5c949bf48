"""A table of any size as item updates, some thousands of rows in memory at a time.

What must hold: each row is sent, or told with file, row and column; a row that is refused takes no other along. An id that stands
twice is sent twice, and its last row counts, as on the topic; it is told. Memory grows by eight bytes an item, for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.tables.blocks import Fault
from models.tables.item_rows import ItemRows
from models.tables.item_table import Faults
from streamer.client.delivery import Delivery
from streamer.client.publisher import ItemPublisher, PublishError
from streamer.settings import Settings

if TYPE_CHECKING:
    from models.towers.text_encoder import TextEncoder


@dataclass
class TablePublished:
    """``items`` that were sent; ``faults``: rows that were not; ``repeated``: rows whose id came before."""

    delivered: Delivery
    items: int = 0
    faults: Faults = field(default_factory=Faults)
    repeated: int = 0


def publish_table(
    settings: Settings,
    rows: Iterable[ItemRows],
    *,
    encoder: TextEncoder | None = None,
    embedding_model: str | None = None,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> TablePublished:
    """Publish rows with their embeddings, or those that ``encoder`` makes of their texts. ``limit``: so many items at most;
    ``advance`` hears of each block.

    Raises:
        DataFileError: a file cannot be read; what came before it is sent.
        PublishError: some events did not reach the broker.
    """
    faults, sent = Faults(), 0
    seen: list[NDArray[np.int64]] = []
    with ItemPublisher(settings, encoder) as publisher:
        for block in rows:
            faults.add(block.faults)
            left = len(block.items) if limit is None else min(len(block.items), limit - sent)
            taken = _send(publisher, block, left, encoder, embedding_model, faults)
            seen.append(np.array([hash(item) for item in taken], dtype=np.int64))
            sent += len(taken)
            advance(len(taken))
            if limit is not None and sent >= limit:
                break
    hashes = np.concatenate(seen) if seen else np.empty(0, np.int64)
    hashes.sort()
    return TablePublished(publisher.delivered, sent, faults, int((hashes[1:] == hashes[:-1]).sum()))


def _send(
    publisher: ItemPublisher,
    block: ItemRows,
    count: int,
    encoder: TextEncoder | None,
    embedding_model: str | None,
    faults: Faults,
) -> list[str]:
    """The ids of what was sent."""
    items = block.items[:count]
    if encoder is not None:
        chosen, embeddings = embedded(block, count, encoder, faults)
    else:
        assert block.embeddings is not None
        chosen, embeddings = list(range(len(items))), block.embeddings
    sent = []
    for row, place in enumerate(chosen):
        item = items[place]
        try:
            publisher.update_item(item, embeddings[row], embedding_model=embedding_model)
        except PublishError as error:  # attributes that nothing would take
            faults.add([Fault(block.file, block.places[place], "", str(error))])
            continue
        sent.append(item.id)
    return sent


def embedded(
    block: ItemRows, count: int, encoder: TextEncoder, faults: Faults
) -> tuple[list[int], NDArray[np.float32]]:
    """The places of the first ``count`` items that have a text, and the embeddings of those, float32 (n, D)."""
    from models.towers.text_encoder import TextEncoderError

    items = block.items[:count]
    try:
        return list(range(len(items))), encoder.encode_items(items)
    except TextEncoderError:  # of one of them; which, is found one by one
        chosen: list[int] = []
        parts: list[NDArray[np.float32]] = []
        for place, item in enumerate(items):
            try:
                parts.append(encoder.encode_items([item]))
                chosen.append(place)
            except TextEncoderError as error:
                faults.add([Fault(block.file, block.places[place], "", str(error))])
        return chosen, np.concatenate(parts) if parts else np.empty((0, encoder.dimension), np.float32)
