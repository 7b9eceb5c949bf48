"""What a producer does: item updates and deletions onto ``item-updates``, attributes alone onto ``item-attributes``. Any Kafka
client can do the same.

The key is the item id and Java's partitioner places it, so every producer sends one item's events to one partition:
another client of librdkafka sets ``partitioner=murmur2_random``, whose own default puts most keys elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from models.attributes import AttributeFault, AttributeValue, encode_attributes
from models.catalogue import CatalogueItem
from models.errors import SidstreamError
from streamer.client.delivery import Delivery, DeliveryLog, ends_of_letters
from streamer.events.records import ITEM_ATTRIBUTES, ITEM_UPDATE, ItemAttributes, ItemUpdate
from streamer.kafka.admin import require
from streamer.kafka.clients import producer_configuration
from streamer.kafka.gather import produce
from streamer.registry.subjects import FramedValues
from streamer.settings import Settings
from streamer.tracing.sending import headers_of_new

if TYPE_CHECKING:  # whoever publishes embeddings of his own needs no ONNX Runtime
    from models.towers.text_encoder import TextEncoder

_POLL_EVERY: Final = 1_000
_FLUSH_SECONDS: Final = 30.0


class PublishError(SidstreamError):
    """Some events did not reach the broker; the message says how many and why."""


class UpdateValues:
    """Values of item updates, the same bytes for the same state: MessagePack, or as ``registry.publish`` of the settings says."""

    def __init__(self, settings: Settings) -> None:
        self._framed = FramedValues(settings) if settings.registry.publish else None
        self._rules = settings.attributes.rules()

    def update(
        self,
        item_id: str,
        embedding: NDArray[np.float32] | NDArray[np.float16],
        *,
        title: str = "",
        weight: float = 1.0,
        updated_at: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        embedding_model: str | None = None,
    ) -> bytes:
        """One item's full state, see ``ItemPublisher.update``. Raises ``PublishError``."""
        if embedding.dtype not in (np.float32, np.float16):
            raise PublishError(f"the embedding of {item_id!r} is {embedding.dtype}: convert it to float32 or float16")
        taken = None if attributes is None else self.checked(item_id, attributes)
        if self._framed is not None:
            fields: dict[str, object] = {
                "embedding": embedding.astype(np.float32).tolist(),
                "title": title,
                "weight": weight,
            }
            optional = {"updated_at": updated_at, "embedding_model": embedding_model}
            fields |= {name: value for name, value in optional.items() if value is not None}
            if taken is not None:
                fields["attributes"] = msgspec.msgpack.decode(taken)
            return self._framed.update(fields)
        little_endian = embedding.astype(embedding.dtype.newbyteorder("<"), copy=False)
        # Bytes of float32 need no word; those of float16 might be half as many numbers of it.
        dtype = "float16" if embedding.dtype == np.float16 else msgspec.UNSET
        update = ItemUpdate(
            embedding=little_endian.tobytes(),
            title=title,
            weight=weight,
            updated_at=updated_at,
            dtype=dtype,
            attributes=msgspec.UNSET if taken is None else taken,
            embedding_model=msgspec.UNSET if embedding_model is None else embedding_model,
        )
        return ITEM_UPDATE.encode(update)

    def checked(self, item_id: str, attributes: Mapping[str, AttributeValue]) -> msgspec.Raw:
        """Attributes in their canonical bytes. Raises ``PublishError`` for those that nothing would take."""
        try:
            return msgspec.Raw(encode_attributes(self._rules.checked(dict(attributes))))
        except AttributeFault as fault:
            raise PublishError(f"{item_id!r}: {fault}") from None


class ItemPublisher:
    """Publishes item updates; leaving the ``with`` block means that the broker has them all.

    >>> with ItemPublisher(settings) as publisher:  # doctest: +SKIP
    ...     publisher.update("sku-1", embedding, title="Glass kettle", attributes={"brand": "Alta", "price": 24.9})
    ...     publisher.update_attributes("sku-1", {"price": 19.9, "in_stock": True})
    ...     publisher.delete("sku-2")

    With ``registry.publish`` of the settings, updates are sent in ``registry.format`` and the frame of its schema, which
    ``sidstream topics create`` has registered; without it, in MessagePack.

    encoder: an item tower, for ``update_from_text``; the text alone is then enough:

    >>> encoder = Towers.open(".sidstream/towers").item_encoder()  # doctest: +SKIP
    >>> with ItemPublisher(settings, encoder) as publisher:  # doctest: +SKIP
    ...     publisher.update_from_text([CatalogueItem(id="sku-1", title="Glass kettle", brand="Alta")])
    """

    def __init__(self, settings: Settings, encoder: TextEncoder | None = None) -> None:
        self._values = UpdateValues(settings)
        self._encoder = encoder
        require(settings.kafka, [settings.topics.item_updates])
        self._settings = settings
        self._topic = settings.topics.item_updates
        self._rules = settings.attributes.rules()
        self._producer = Producer(producer_configuration(settings.kafka))
        self._sent = 0
        self._failures: list[str] = []
        self._delivered = DeliveryLog(ends_of_letters(settings, settings.topics.item_updates_dead_letters))
        self._attributes_delivered: DeliveryLog | None = None
        self._models: set[str | None] = set()

    @property
    def delivered(self) -> Delivery:
        """What the broker has of this publisher, for ``read_your_writes.await_indexed``."""
        alone = self._attributes_delivered
        return replace(
            self._delivered.delivery(None if alone is None else alone.delivery()), models=frozenset(self._models)
        )

    def update(
        self,
        item_id: str,
        embedding: NDArray[np.float32] | NDArray[np.float16],
        *,
        title: str = "",
        weight: float = 1.0,
        updated_at: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        embedding_model: str | None = None,
    ) -> None:
        """One item's full state. ``embedding``: (D,) float32 or float16; ``updated_at``: milliseconds since the epoch;
        ``embedding_model``: the name of what made the embedding, where codebooks of several models live side by side.

        ``attributes``: all that this update says of them; those of ``update_attributes`` stay, and of a field that both have the
        later one counts.

        Raises:
            PublishError: an embedding of another type, or attributes that nothing would take; nothing is sent.
        """
        value = self._values.update(
            item_id,
            embedding,
            title=title,
            weight=weight,
            updated_at=updated_at,
            attributes=attributes,
            embedding_model=embedding_model,
        )
        self._models.add(embedding_model)
        self._send(self._topic, item_id, value)

    def update_item(
        self,
        item: CatalogueItem,
        embedding: NDArray[np.float32] | NDArray[np.float16],
        *,
        embedding_model: str | None = None,
    ) -> None:
        """All that a catalogue says of an item, see ``update``."""
        self.update(
            item.id,
            embedding,
            title=item.title,
            weight=item.weight,
            attributes=item.attributes or None,
            embedding_model=embedding_model,
        )

    def update_attributes(self, item_id: str, attributes: Mapping[str, AttributeValue] | None) -> None:
        """All that ``item-attributes`` says of an item, in the place of what it said before; None takes it away. No embedding
        is sent again: made for prices and stock. The item may come later.

        Raises:
            PublishError: attributes that nothing would take, or the topic is missing; nothing is sent.
        """
        value = None
        if attributes is not None:
            value = ITEM_ATTRIBUTES.encode(ItemAttributes(attributes=self._values.checked(item_id, attributes)))
        self._send_attributes(item_id, value)

    def update_from_text(self, items: Sequence[CatalogueItem]) -> None:
        """Several items' full state, each with the embedding of its text.

        Raises:
            TextEncoderError: an item has no text; none of ``items`` is sent.
        """
        if self._encoder is None:
            raise PublishError(
                "the publisher has no item tower: give ItemPublisher the encoder of Towers.item_encoder()"
            )
        for item, embedding in zip(items, self._encoder.encode_items(items), strict=True):
            self.update_item(item, embedding)

    def delete(self, item_id: str) -> None:
        """A tombstone: the item leaves index and results.

        Where attributes are declared in the settings, or were sent by this publisher, ``item-attributes`` gets one as well: else
        an item that comes back would have the price of before, and the index would keep attributes of nothing for ever.
        """
        self._send(self._topic, item_id, None)
        if self._rules.types or self._attributes_delivered is not None:
            self._send_attributes(item_id, None)

    def poll(self) -> None:
        """Serve the client between events that come slowly."""
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises:
            PublishError: some events were refused or timed out.
        """
        left = self._producer.flush(_FLUSH_SECONDS)
        if left or self._failures:
            why = f": {self._failures[0]}" if self._failures else " within 30 s: is the broker there?"
            raise PublishError(f"{left + len(self._failures)} of {self._sent} events did not reach the broker{why}")

    def _send_attributes(self, item_id: str, value: bytes | None) -> None:
        topics = self._settings.topics
        if self._attributes_delivered is None:
            require(self._settings.kafka, [topics.item_attributes])
            letters = ends_of_letters(self._settings, topics.item_attributes_dead_letters)
            self._attributes_delivered = DeliveryLog(letters)
        self._send(topics.item_attributes, item_id, value)

    def _send(self, topic: str, item_id: str, value: bytes | None) -> None:
        key = item_id.encode()
        traced = headers_of_new(topic, key)
        produce(self._producer, topic, key=key, value=value, headers=traced, on_delivery=self._on_delivery)
        self._sent += 1
        if self._sent % _POLL_EVERY == 0:
            self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, record: Message) -> None:
        if error is not None:
            self._failures.append(f"{(record.key() or b'').decode()}: {error.str()}")
            return
        log = self._delivered if record.topic() == self._topic else self._attributes_delivered
        assert log is not None  # made before anything is sent
        log.add(record.partition(), record.offset())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()


def publish_items(
    settings: Settings,
    items: Sequence[CatalogueItem],
    embeddings: NDArray[np.float32],
    *,
    embedding_model: str | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> Delivery:
    """Publish a catalogue's items, row i of ``embeddings`` (N, D) with ``items[i]``; ``advance`` hears of each thousand.
    ``embedding_model``: see ``ItemPublisher.update``.

    What was delivered, as ``ItemPublisher.delivered`` says it.
    """
    with ItemPublisher(settings) as publisher:
        for row, item in enumerate(items):
            publisher.update_item(item, embeddings[row], embedding_model=embedding_model)
            if (row + 1) % _POLL_EVERY == 0:
                advance(_POLL_EVERY)
        advance(len(items) % _POLL_EVERY)
    return publisher.delivered


def publish_texts(
    settings: Settings,
    items: Sequence[CatalogueItem],
    encoder: TextEncoder,
    *,
    advance: Callable[[int], None] = lambda _count: None,
) -> Delivery:
    """Publish items with the embeddings of their texts; ``advance`` hears of each thousand. Nothing is sent if an item
    has no text. What was delivered, as ``ItemPublisher.delivered`` says it.
    """
    from models.towers.text_encoder import require_text

    require_text(items)
    with ItemPublisher(settings, encoder) as publisher:
        for start in range(0, len(items), _POLL_EVERY):
            block = items[start : start + _POLL_EVERY]
            publisher.update_from_text(block)
            advance(len(block))
    return publisher.delivered


def publish_deletions(
    settings: Settings, item_ids: Sequence[str], *, advance: Callable[[int], None] = lambda _count: None
) -> Delivery:
    """Publish tombstones of these items; ``advance`` hears of all of them at the end. What was delivered."""
    with ItemPublisher(settings) as publisher:
        for item_id in item_ids:
            publisher.delete(item_id)
    advance(len(item_ids))
    return publisher.delivered
