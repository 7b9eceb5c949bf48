"""Producers of a chaos run and the truth about what they published: what must be in the index, in dead letters, in results.

One thread publishes, so the truth is what it sent and in which order; coordinates come from the broker's acknowledgements.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from msgspec import UNSET, Raw
from numpy.typing import NDArray

from models.attributes import Attributes, encode_attributes
from models.codebooks.codebook import Codebook
from streamer.events.records import ITEM_ATTRIBUTES, ITEM_UPDATE, QUERY, ItemUpdate, Query
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.settings import Settings
from support.item_stream import FIRST_TIME
from support.patience import PATIENCE_SECONDS

PROBE: Final = "probe"
_TAIL: Final = 5_000
_PROBE_SECONDS: Final = 0.05
_KINDS: Final = {
    "update": 0.70, "same embedding": 0.06, "delete": 0.11, "malformed": 0.028, "oversize": 0.002, "attributes": 0.09,
    "malformed attributes": 0.01,
}  # fmt: skip
_BAD_UPDATES: Final = (b'{"embedding": "', b"\xc1", b'{"embedding": [1, 2]}', b"[]", b'{"title": "no embedding"}', b"")
_BAD_ATTRIBUTES: Final = (b'{"attributes": {"price": "9"}}', b"[]", b'{"price": 9}', b'{"attributes": {"a": {}}}', b"")
_BAD_QUERIES: Final = (b'{"text": 3}', b"", b"\xff\xfe", b'{"limit": 10}', b'{"text": "x", "limit": 0}')

Coordinates = tuple[str, int, int]


@dataclass(frozen=True)
class Expected:
    """What the index must say of an item."""

    embedding: NDArray[np.float32]
    title: str
    weight: float
    updated_at: int
    attributes: Attributes


@dataclass
class Truth:
    """Everything that was published. ``items``: None after a deletion; ``alone``: what ``item-attributes`` says last, nothing
    after a record that cannot be used; ``sent``: how often each (id, updated_at) was."""

    items: dict[str, Expected | None] = field(default_factory=dict)
    alone: dict[str, Attributes] = field(default_factory=dict)
    malformed_attributes: set[Coordinates] = field(default_factory=set)
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    malformed_updates: set[Coordinates] = field(default_factory=set)
    malformed_queries: set[Coordinates] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)

    def live(self) -> dict[str, Expected]:
        return {name: item for name, item in self.items.items() if item is not None}


class Producers(threading.Thread):
    """Publishes until told to stop. ``probes``: (when, number) of each round of probe items, one item a partition."""

    def __init__(
        self,
        settings: Settings,
        codebook: Codebook,
        *,
        seed: int,
        ids: int,
        events_per_second: float,
        queries_per_second: float,
    ) -> None:
        super().__init__(name="producers")
        self.truth = Truth()
        self.probes: list[tuple[float, int]] = []
        self.asked_at: dict[str, float] = {}
        self.failure: BaseException | None = None
        self._settings = settings
        self._codebook = codebook
        self._dice = np.random.default_rng(seed)
        self._ids = ids
        self._rates = (events_per_second, queries_per_second)
        self._producer = Producer(producer_configuration(settings.kafka))
        self._tail: deque[tuple[str, bytes | None, bytes | None, int, bool]] = deque(maxlen=_TAIL)
        self._row = FIRST_TIME  # each update's own time, by which it is told from the others
        self._errors: list[str] = []
        self._stopping = threading.Event()
        self._orders: queue.Queue[tuple[Callable[[], None], threading.Event]] = queue.Queue()
        self._new_ids = 0

    def stop(self) -> None:
        """Publish no more, and return when the broker has everything."""
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        assert not self._errors, f"{len(self._errors)} events were not taken: {self._errors[0]}"

    def resend_tail(self, events: int) -> None:
        """Send the newest events again, in their order and with nothing between them."""

        def resend() -> None:
            for topic, key, value, partition, malformed in list(self._tail)[-events:]:
                if key is not None and topic == self._settings.topics.item_updates and value and not malformed:
                    self.truth.sent[key.decode(), ITEM_UPDATE.decode(value).updated_at] += 1
                self._send(topic, key, value, malformed, partition, again=True)

        self._order(resend)

    def fill(self, items: int) -> None:
        """New items with long titles."""

        def send() -> None:
            for _ in range(items):
                self._new_ids += 1
                self._upsert(f"long-{self._new_ids}", self._embedding(), title="long " * 400)

        self._order(send)

    def crowd(self, items: int) -> None:
        """Near-identical items, all on one layer-2 token; the items of the last crowd go."""
        first, second = (int(token) for token in self._dice.integers(self._codebook.size, size=2))
        centre = self._codebook.codewords[0, first] + self._codebook.codewords[1, second]

        def send() -> None:
            for name in [name for name, item in self.truth.items.items() if name.startswith("fad-") and item]:
                self._remove(name)
            for number in range(items):
                noise = self._dice.normal(scale=0.01, size=self._codebook.dimension)
                self._upsert(f"fad-{number}", (centre + noise).astype("<f4"))

        self._order(send)

    def _order(self, work: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.put((work, done))
        while not done.wait(0.1):
            assert self.is_alive(), "the producers have died"

    def run(self) -> None:
        try:
            self._publish()
        except BaseException as failure:
            self.failure = failure

    def _publish(self) -> None:
        started = last_probe = time.monotonic()
        events = queries = 0
        partitions = range(self._settings.topics.partitions)
        while not self._stopping.is_set():
            while not self._orders.empty():
                work, done = self._orders.get()
                work()
                done.set()
            now = time.monotonic()
            if now - last_probe > _PROBE_SECONDS:
                last_probe = now
                self._row += 1
                for partition in partitions:
                    self._upsert(f"{PROBE}-{partition}", self._embedding(), partition=partition)
                self.probes.append((now, self._row))
            for _ in range(min(500, int((now - started) * self._rates[0]) - events)):
                self._event()
                events += 1
            for _ in range(min(20, int((now - started) * self._rates[1]) - queries)):
                self._query()
                queries += 1
            self._producer.poll(0.002)
        assert self._producer.flush(PATIENCE_SECONDS) == 0, "the broker does not take everything"

    def _event(self) -> None:
        [kind] = self._dice.choice(list(_KINDS), p=list(_KINDS.values()), size=1)
        name = f"item-{self._dice.integers(self._ids)}"
        known = self.truth.items.get(name)
        if kind == "delete":
            self._remove(name)
        elif kind == "malformed":
            bad = _BAD_UPDATES[self._dice.integers(len(_BAD_UPDATES))]
            key = b"" if self._dice.random() < 0.1 else name.encode()
            self._send(self._settings.topics.item_updates, key, bad, True)
        elif kind == "attributes":
            self._row += 1
            given: Attributes | None = {"price": self._row % 100, "seen": [f"{self._row}"]}
            given = None if self._dice.random() < 0.1 else given
            self.truth.alone[name] = given or {}
            value = None if given is None else ITEM_ATTRIBUTES.encode({"attributes": given})
            self._send(self._settings.topics.item_attributes, name.encode(), value, False)
        elif kind == "malformed attributes":
            bad = _BAD_ATTRIBUTES[self._dice.integers(len(_BAD_ATTRIBUTES))]
            self.truth.alone[name] = {}
            self._send(self._settings.topics.item_attributes, name.encode(), bad, True)
        elif kind == "oversize":
            self._send(self._settings.topics.item_updates, name.encode(), b"{" + b" " * 300_000 + b"}", True)
        else:
            same = kind == "same embedding" and known is not None
            self._upsert(name, known.embedding if same and known else self._embedding())
        self.truth.events[str(kind)] += 1

    def _query(self) -> None:
        topic = self._settings.topics.queries
        number = len(self.asked_at)
        query_id = f"query-{number}"
        self.asked_at[query_id] = time.monotonic()
        self.truth.queries.add(query_id)
        if self._dice.random() < 0.05:
            self._send(topic, query_id.encode(), _BAD_QUERIES[number % len(_BAD_QUERIES)], True)
            self.truth.events["malformed query"] += 1
            return
        history = tuple(f"item-{item}" for item in self._dice.integers(self._ids, size=2))
        query = Query(text=f"thing number {number}", history=history, limit=int(self._dice.integers(1, 20)))
        self._send(topic, query_id.encode(), QUERY.encode(query), False)
        self.truth.events["query"] += 1

    def _embedding(self) -> NDArray[np.float32]:
        return self._dice.normal(size=self._codebook.dimension).astype("<f4")

    def _upsert(self, name: str, embedding: NDArray[np.float32], *, title: str = "", partition: int = -1) -> None:
        if not name.startswith(PROBE):
            self._row += 1
        row = self._row
        # No field of these comes alone: which of two is later, clocks that jump would decide.
        attributes: Attributes = {"row": row, "even": row % 2 == 0} if row % 3 else {}
        item = Expected(embedding, f"{title}{row}", 0.5 + row % 7, row, attributes)
        self.truth.items[name] = item
        self.truth.sent[name, row] += 1
        update = ItemUpdate(
            embedding=embedding.tobytes(),
            title=item.title,
            weight=item.weight,
            updated_at=row,
            attributes=Raw(encode_attributes(attributes)) if attributes else UNSET,
        )
        self._send(self._settings.topics.item_updates, name.encode(), ITEM_UPDATE.encode(update), False, partition)

    def _remove(self, name: str) -> None:
        self.truth.items[name] = None
        self._send(self._settings.topics.item_updates, name.encode(), None, False)

    def _send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        malformed: bool,
        partition: int = -1,
        again: bool = False,
    ) -> None:
        topics = self._settings.topics
        queries = topic == topics.queries
        if not (queries or again):
            # A query that came twice would be answered twice, as it should be.
            self._tail.append((topic, key, value, partition, malformed))
        letters = {
            topics.queries: self.truth.malformed_queries,
            topics.item_updates: self.truth.malformed_updates,
            topics.item_attributes: self.truth.malformed_attributes,
        }[topic]

        def on_delivery(error: KafkaError | None, record: Message) -> None:
            if error is not None:
                self._errors.append(error.str())
            elif malformed:
                letters.add((record.topic(), record.partition(), record.offset()))

        more: dict[str, Any] = {} if partition < 0 else {"partition": partition}
        produce(self._producer, topic, key=key, value=value, on_delivery=on_delivery, **more)
