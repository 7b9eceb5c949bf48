"""What a client sends, held against the rules of its topic before it is sent on: what nothing would take is refused here.

The same rooms read it that read the topics, so that a refusal has the words of a dead letter. Embeddings are held against the
bundle that answers, where this machine has it.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec
from confluent_kafka import Message

from gateway.problems import refused
from models.bundles.bundle import Bundle
from models.bundles.manifest import BundleError
from models.bundles.store import BundleStore
from retriever.answering.admission import Admission, BundleLimits
from streamer.deployments.follow import ServingFollower
from streamer.events.intake import AttributesIntake, EventError, checked_item_id
from streamer.events.records import ITEM_UPDATE, ItemUpdate, Query
from streamer.events.updates.batch import Update
from streamer.events.updates.checks import OtherModelError, UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.events.values.embeddings import PlausibleNorms, check_embeddings, matrix_of
from streamer.settings import Settings

_PARTS_ARE_OURS: Final = (
    "part: the gateway asks shards itself, and puts their answers together: leave it out, and set retriever.shards"
)


_WORDS: Final = {
    "the key is the item id, but it": "the item's id",
    "the key is the item's id; send the same there": "that is the item's id; send the same in the body",
    "or a null value to delete the item": "or delete the item",
    "to delete an item, send a null value (no bytes at all)": "to delete an item, say so (DELETE)",
    "to take an item's attributes away, send a null value (no bytes at all)": "to take them away, say so (DELETE)",
}


class _Known:
    """What is known of the bundle that answers."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.dimension = manifest.dimension
        self.embedding_model = manifest.embedding_model
        self.limits = BundleLimits(manifest.dimension, bundle.layout.layers, bundle.layout.size)
        self.plausible = PlausibleNorms.of(manifest.embedding_norms)


class Intake:
    """Reads queries, item updates and attributes; each as JSON or MessagePack. ``follower``: knows which bundle answers."""

    def __init__(self, settings: Settings, follower: ServingFollower | None = None) -> None:
        self._settings = settings
        self._follower = follower
        self._rules = settings.attributes.rules()
        self._attributes = AttributesIntake(settings.attributes)
        self._admission = Admission(
            settings.retriever, limits_of=lambda _who: self._limits(), filterable=settings.attributes.filterable
        )
        self._known = self._open()
        self._updates: dict[tuple[int, str | None], UpdateIntake] = {}

    def look(self) -> None:
        """Once a second, in any thread but the event loop's: another bundle may have been deployed, and its files are hashed."""
        if self._follower is not None and self._follower.changed():
            self._known = self._open()

    def _open(self) -> _Known | None:
        """Of the bundle that answers; None where it is not on this machine."""
        settings = self._settings
        serving = None if self._follower is None else self._follower.current
        try:
            store = BundleStore(settings.bundles)
            bundle = Bundle.open(settings.bundle) if serving is None else store.open(serving.bundle)
        except BundleError:
            return None
        return _Known(bundle)

    def _limits(self) -> BundleLimits:
        return BundleLimits(None) if self._known is None else self._known.limits

    def query(self, body: bytes) -> Query:
        """Raises ``Problem``: why no retriever would answer it."""
        try:
            query = self._admission.decode(_message(self._settings.topics.queries, b"-", body)).query
        except EventError as error:
            raise refused(error.kind, str(error)) from None
        if query.part is not msgspec.UNSET:
            raise refused("InvalidPart", _PARTS_ARE_OURS)
        return query

    def item_id(self, item_id: bytes) -> bytes:
        """The same; raises ``Problem``: why no item can have this id."""
        try:
            return checked_item_id(item_id)
        except EventError as error:
            raise refused(error.kind, _of_path(str(error))) from None

    def update(self, item_id: bytes, body: bytes) -> str | None:
        """The model that made the embedding, as the update says it.

        Raises:
            Problem: why no assigner would take it.
        """
        if not body:
            raise refused("EmptyEvent", "the body is empty: send the item's state, or DELETE to take it away")
        record = _message(self._settings.topics.item_updates, item_id, body)
        try:
            update = _decoded(body)
            limits = self._held_against(update)
            self._check_numbers(self._intake(limits).read(record, _now()), limits[0])
        except OtherModelError:
            pass  # for another codebook, whose assigner looks at it
        except EventError as error:
            raise refused(error.kind, _of_path(str(error))) from None
        return None if update is None else _model_of(update)

    def _held_against(self, update: ItemUpdate | None) -> tuple[int, str | None]:
        """Dimension and model that it is held against: the bundle's; where that is not here, the update's own."""
        if self._known is not None:
            return self._known.dimension, self._known.embedding_model
        if update is None:
            return 1, None
        return _numbers(update), _model_of(update)

    def _intake(self, limits: tuple[int, str | None]) -> UpdateIntake:
        intake = self._updates.get(limits)
        if intake is None:
            own = UpdateLimits.of(self._settings.assigner, limits[0], self._rules, limits[1])
            intake = UpdateIntake(own, strict=self._settings.assigner.strict)
            if self._known is not None:  # else there would be one for whatever clients think of
                self._updates[limits] = intake
        return intake

    def _check_numbers(self, update: Update, dimension: int) -> None:
        """Raises ``EventError``: nothing but zeros, NaN, or bytes that may be anything."""
        if update.embedding is None:
            return
        plausible = PlausibleNorms.of(None) if self._known is None else self._known.plausible
        embeddings = [update.embedding]
        checked = check_embeddings(
            matrix_of(embeddings, dimension), embeddings, [0] if update.guessed else [], plausible
        )
        for fault in checked.faults.values():
            raise EventError(fault.kind, str(fault))

    def attributes(self, item_id: bytes, body: bytes) -> None:
        """Raises ``Problem``: why no indexer would take them."""
        if not body:
            raise refused(
                "EmptyEvent", "the body is empty: send the attributes as a JSON object, or DELETE to take them away"
            )
        try:
            self._attributes.read(_message(self._settings.topics.item_attributes, item_id, body))
        except EventError as error:
            raise refused(error.kind, _of_path(str(error))) from None


def _decoded(body: bytes) -> ItemUpdate | None:
    """None of what does not decode: the intake says why."""
    try:
        update: ItemUpdate = ITEM_UPDATE.decode(body)
        return update
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _model_of(update: ItemUpdate) -> str | None:
    return None if isinstance(update.embedding_model, msgspec.UnsetType) else update.embedding_model


def _numbers(update: ItemUpdate) -> int:
    if isinstance(update.embedding, bytes):
        return max(1, len(update.embedding) // (2 if update.dtype == "float16" else 4))
    return max(1, len(update.embedding))


def _message(topic: str, key: bytes, value: bytes) -> Message:
    return Message(topic=topic, partition=0, offset=0, key=key, value=value, timestamp=(1, _now()))


def _now() -> int:
    return int(time.time() * 1000)


def _of_path(said: str) -> str:
    """For whoever has a path or a line, and no key."""
    for ours, theirs in _WORDS.items():
        said = said.replace(ours, theirs)
    return said
