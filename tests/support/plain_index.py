"""The index again in plain Python: slow, obvious, and what the real one is held against."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.attributes import Attributes, encode_attributes
from models.sids.layout import Layout
from store.records.batch import CodesBatch
from store.records.item_attributes import AttributesBatch

CODEBOOK = "0123456789abcdef"


@dataclass(frozen=True)
class Event:
    """One item event; ``codes`` None deletes."""

    id: bytes
    codes: tuple[int, ...] | None
    weight: float = 1.0
    title: str = ""
    updated_at: int = 0
    partition: int = 0
    timestamp: int = 0
    vector: bytes = b""
    attributes: Attributes | None = None


@dataclass(frozen=True)
class AttributesEvent:
    """One record of ``item-attributes``; ``attributes`` None takes them away."""

    id: bytes
    attributes: Attributes | None
    partition: int = 0
    timestamp: int = 0


def attributes_batch_of(events: Sequence[AttributesEvent]) -> AttributesBatch:
    return AttributesBatch(
        ids=[event.id for event in events],
        values=[None if event.attributes is None else encode_attributes(event.attributes) for event in events],
        partitions=np.array([event.partition for event in events], np.int32),
        timestamps=np.array([event.timestamp for event in events], np.int64),
    )


def batch_of(events: Sequence[Event], layers: int = 3) -> CodesBatch:
    return CodesBatch(
        ids=[event.id for event in events],
        codes=np.array([event.codes or (0,) * layers for event in events], np.uint16).reshape(len(events), layers),
        weights=np.array([event.weight for event in events], np.float32),
        titles=[event.title for event in events],
        updated_at=np.array([event.updated_at for event in events], np.int64),
        deleted=np.array([event.codes is None for event in events], np.bool_),
        partitions=np.array([event.partition for event in events], np.int32),
        timestamps=np.array([event.timestamp for event in events], np.int64),
        vectors=[event.vector for event in events],
        attributes=[b"" if event.attributes is None else encode_attributes(event.attributes) for event in events],
    )


def random_events(seed: int, count: int, *, ids: int, layers: int = 3, size: int = 16) -> list[Event]:
    """Upserts and deletions (one in six) over a pool of ids; the same for the same seed."""
    random = np.random.default_rng(seed)
    return [
        Event(
            id=b"item-%06d" % random.integers(ids),
            codes=None if random.random() < 1 / 6 else tuple(random.integers(size, size=layers).tolist()),
            weight=float(np.float32(random.random())),
            title=f"title {seed}",
            updated_at=seed,
        )
        for _ in range(count)
    ]


class PlainIndex:
    """The newest state of every live item, by id."""

    def __init__(self, layers: int = 3, size: int = 16) -> None:
        self.layers, self.size = layers, size
        self.items: dict[bytes, Event] = {}

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.codes is None:
                self.items.pop(event.id, None)
            else:
                self.items[event.id] = event

    def census(self) -> np.ndarray:
        counts = np.zeros((self.layers, self.size), np.int64)
        for event in self.items.values():
            for layer, token in enumerate(event.codes):
                counts[layer, token] += 1
        return counts

    def digest(self) -> str:
        digest = hashlib.sha256(struct.pack("<I", self.layers))
        for item_id, event in sorted(self.items.items()):
            id_bytes = len(item_id) | (0x4000 if event.vector else 0)
            value = struct.pack(f"<{self.layers}HfqH", *event.codes, event.weight, event.updated_at, id_bytes)
            value += item_id + event.title.encode("utf-8", "surrogatepass")
            if event.vector:
                value += event.vector + struct.pack("<H", len(event.vector))
            digest.update(struct.pack("<I", len(value)) + value)
        return digest.hexdigest()

    def paths(self, layout: Layout, first: Iterable[int]) -> Counter[tuple[tuple[int, ...], bytes]]:
        """(SID token numbers padded with -1, id) of every item below the first tokens, by the definition of a SID."""
        found: Counter[tuple[tuple[int, ...], bytes]] = Counter()
        for item_id, event in self.items.items():
            if event.codes[0] in first:
                sid = [
                    layer * self.size + token
                    for layer, token in enumerate(event.codes)
                    if layer != 1 or token not in layout.head_tokens
                ]
                found[tuple(sid + [-1] * (self.layers - len(sid))), item_id] += 1
        return found
