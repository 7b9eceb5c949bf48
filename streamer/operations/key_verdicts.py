"""Which keys a move leaves where they are, and why: moving them would take something away.

A move puts a key's newest record into its own partition and a tombstone into the old one. The codes of an item are those of the
last update that an assigner took. If that is not the newest one, the tombstone would take them away, and the copy brings none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from confluent_kafka import Message

from models.bundles.bundle import Bundle
from streamer.deployments.served import own_settings
from streamer.events.formats.reading import NO_FORMATS, Formats
from streamer.events.intake import EventError, checked_item_id
from streamer.events.serving import Serving
from streamer.events.updates.checks import UpdateLimits
from streamer.events.updates.reading import UpdateIntake
from streamer.events.values.embeddings import PlausibleNorms
from streamer.settings import Settings

_ANY_NORM = PlausibleNorms.of(None)


class Stays(Enum):
    """Why a key stays where it is.

    ``REFUSED``: its newest record cannot be used; ``OTHER_MODEL``: a codebook passes over its newest update, whose embedding is
    of another model; ``WITH_ITEM``: its item stays, and a shard must have both.
    """

    REFUSED = auto()
    OTHER_MODEL = auto()
    WITH_ITEM = auto()


# Of newest records, each of another key: the keys that stay.
Verdicts = Callable[[Sequence[Message]], Mapping[bytes, Stays]]


class UpdateVerdicts:
    """The verdicts on updates of every codebook that has an assigner. ``bundles``: one of each."""

    def __init__(self, settings: Settings, bundles: Sequence[Bundle], formats: Formats = NO_FORMATS) -> None:
        kinds = {(bundle.manifest.dimension, bundle.manifest.embedding_model) for bundle in bundles}
        rules, own = settings.attributes.rules(), settings.assigner
        limits = [UpdateLimits.of(own, dimension, rules, model) for dimension, model in kinds]
        self._intakes = [(each, UpdateIntake(each, strict=own.strict, formats=formats)) for each in limits]

    def __call__(self, records: Sequence[Message]) -> dict[bytes, Stays]:
        """Raises ``RegistryAwayError`` if a schema cannot be asked for now."""
        now = time.time_ns() // 1_000_000
        stay: dict[bytes, Stays] = {}
        for limits, intake in self._intakes:
            updates = intake.read_batch(records, now)
            places, _, checked = updates.checked_embeddings(limits.dimension, _ANY_NORM)
            refused = {_key(record) for record, _ in updates.rejected}
            refused |= {_key(updates.records[places[row]]) for row in checked.faults}
            # Usable, refused, or passed over: there is nothing else.
            taken = {_key(record) for record in updates.records}
            others = {_key(record) for record in records} - taken - refused
            stay = dict.fromkeys(others, Stays.OTHER_MODEL) | stay | dict.fromkeys(refused, Stays.REFUSED)
        return stay


class AttributesVerdicts:
    """The verdicts on records of ``item-attributes``. ``items``: keys of the items that stay; more may come in meanwhile.

    What cannot be used otherwise moves: as the last record it takes away what was said before.
    """

    def __init__(self, items: Collection[bytes]) -> None:
        self._items = items

    def __call__(self, records: Sequence[Message]) -> dict[bytes, Stays]:
        keys = list(map(_key, records))
        of_items = {key: Stays.WITH_ITEM for key in keys if key in self._items}
        return of_items | {key: Stays.REFUSED for key in keys if not _is_item(key)}


def bundles_of_pipelines(settings: Settings, serving: Serving | None) -> list[Bundle]:
    """A bundle of each codebook that has a pipeline; ``settings``: as they were loaded.

    Raises:
        BundleError: this machine lacks one.
    """
    if serving is None or not serving.pipelines:
        return [Bundle.open(own_settings(settings, serving).bundle)]
    each = (settings.model_copy(update={"pipeline": pipeline.codebook}) for pipeline in serving.pipelines)
    return [Bundle.open(own_settings(one, serving).bundle) for one in each]


def _key(record: Message) -> bytes:
    key: Any = record.key()
    return key or b""


def _is_item(key: bytes) -> bool:
    try:
        checked_item_id(key)
    except EventError:
        return False
    return True
