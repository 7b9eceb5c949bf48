"""Which partitions the index of this host holds: those of ``indexer.partitions``, or all.

What must hold: an item's codes and its attributes are held together, so both topics must divide their keys alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from streamer.events.topics import Partition
from streamer.indexer.codes import IndexerError
from streamer.settings import Settings
from streamer.shards.partitions import holds, numbers_of, text_of

log = structlog.get_logger(__name__)
_NAMED: Final = 10


def held_places(settings: Settings, partitions_of: Callable[[str], Sequence[int]]) -> list[Partition]:
    """Each partition that this host's index is read from; ``partitions_of``: those that a topic has.

    Raises:
        IndexerError: ``indexer.partitions`` names one that is not there, or attributes lie in other partitions than their items.
    """
    topics, held = settings.topics, settings.indexer.partitions
    codes, attributes = partitions_of(topics.item_codes), partitions_of(topics.item_attributes)
    if held:
        if missing := numbers_of(held) - set(codes):
            raise IndexerError(
                f"indexer.partitions is {held}, and {topics.item_codes} has the partitions {text_of(codes)}: take "
                f"{text_of(missing)} out of it, or add partitions (`sidstream topics repartition`)"
            )
        updates = partitions_of(topics.item_updates)
        if updates and len(attributes) != len(updates):
            raise IndexerError(
                f"{topics.item_attributes} has {len(attributes)} partitions and {topics.item_updates} {len(updates)}, so that "
                f"an item's attributes may lie in none of those that hold the item (indexer.partitions is {held}): run "
                f"`sidstream topics repartition --partitions {max(len(attributes), len(updates))}`, which gives both as many and "
                "moves what is there, or hold all partitions on this host"
            )
    places = [(topics.item_codes, partition) for partition in codes if holds(held, partition)]
    places += [(topics.item_attributes, partition) for partition in attributes if holds(held, partition)]
    return places + [(topics.layouts, partition) for partition in partitions_of(topics.layouts)]


def held_of_added(settings: Settings, added: Iterable[Partition]) -> list[Partition]:
    """Those of the partitions that topics got which are held here; of the others a line of the log says so."""
    held, every = settings.indexer.partitions, list(added)
    kept = [place for place in every if place[0] == settings.topics.layouts or holds(held, place[1])]
    if len(kept) < len(every):
        others = [f"{topic}/{partition}" for topic, partition in every if (topic, partition) not in kept]
        log.warning(
            "partitions_of_other_shards",
            added=others[:_NAMED],
            held=held,
            next="another host's indexer.partitions must name them, or their items are in no index",
        )
    return kept
