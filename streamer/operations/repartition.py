"""``sidstream topics repartition``: topics get partitions, and every item moves into the partition that its key belongs into.

1. *Check*: the topics whose keys move keep the times that records are written with; none has more partitions than asked for.
2. *Grow* every topic that has ``topics.partitions``, ``item-codes`` before ``item-updates`` (codes go to the partition of their
   update) and results before queries.
3. *Look*: read ``item-updates`` and ``item-attributes`` to their ends, and decide key by key (``streamer.operations.key_moves``).
4. *Move*: copies and tombstones of some hundred keys a Kafka transaction (``streamer.operations.key_mover``). The assigner
   carries updates, and their times, over to ``item-codes``, and the indexer all of it into the index.
5. Look again, until there is nothing to move.

Only these two have keys to move: both are compacted, and the index takes of each partition the last record of a key. Nobody asks
in which partition a query, an answer or an interaction lies: all partitions are read, and times alone decide; they go in days.

Killed anywhere, an open transaction is aborted by the next run, and what is committed is found by its first look: no step is
noted elsewhere. One run at a time: a second one fences the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from streamer.deployments.pipelines import codes_topic_of
from streamer.deployments.served import find_serving
from streamer.events.topics import topic_specs
from streamer.kafka.admin import require
from streamer.operations.key_mover import (
    KeyMover,
    MovedKeys,
    RepartitionError,
    RepartitionProgress,
    move_everything,
)
from streamer.operations.key_verdicts import AttributesVerdicts, UpdateVerdicts, bundles_of_pipelines
from streamer.operations.topic_growth import (
    grow,
    kept_from_compaction,
    partitions_of_topics,
    require_no_more,
    require_own_times,
)
from streamer.registry.reading import formats_of
from streamer.settings import Settings

# Producers ask for a topic's partitions anew every five minutes, in Java's client as in librdkafka.
PATIENCE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class RepartitionOutcome:
    """``updates``, ``attributes``: what became of the keys of ``item-updates`` and ``item-attributes``, ``None`` where that is
    missing; ``grown``: topics that got partitions; ``missing``: topics that would have, and are not there.
    """

    updates: MovedKeys
    attributes: MovedKeys | None
    grown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def partitions(self) -> int:
        return self.updates.partitions

    @property
    def topics(self) -> tuple[MovedKeys, ...]:
        """Of every topic whose keys move."""
        return (self.updates,) if self.attributes is None else (self.updates, self.attributes)


def repartition(
    settings: Settings,
    partitions: int | None = None,
    *,
    dry_run: bool = False,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: Callable[[RepartitionProgress], None] = lambda _progress: None,
) -> RepartitionOutcome:
    """Bring every key of ``item-updates`` and ``item-attributes`` into its partition among ``partitions``; without a number,
    among those that each of the two has.

    ``patience_seconds``: how long to go on while producers still write into the partitions of before.

    Raises:
        TopicError: a topic is missing, has more partitions, or does not keep its records' times.
        RepartitionError: the broker refuses, another run has taken over, or the index has an order of its own.
        RegistryAwayError: the schema registry does not answer.
    """
    topics, kafka = settings.topics, settings.kafka
    if settings.indexer.order != "arrival":
        raise RepartitionError(
            f"items move by the order of their updates' Kafka times, and this pipeline's index goes by indexer.order = "
            f"{settings.indexer.order!r}: an item could go back to an older state. Add partitions by kafka-topics, "
            f"{topics.item_codes} before {topics.item_updates}, and publish the whole catalogue again (docs/partitions.md)"
        )
    serving = find_serving(settings)
    pipelines = () if serving is None else serving.pipelines
    # The codes of every codebook, first: what comes of an update goes into the partition of the same number.
    codes = [codes_topic_of(settings, pipeline) for pipeline in pipelines] or [topics.item_codes]
    require(kafka, [*codes, topics.item_updates])
    names = _growing(settings, codes)
    now = partitions_of_topics(kafka, names)
    wanted = now[topics.item_updates] if partitions is None else partitions
    # Without a number keys go home, and the topics stay as they are.
    alike = [*codes, topics.item_updates, *([] if partitions is None else [topics.item_attributes])]
    require_no_more({name: now[name] for name in alike if name in now}, wanted)
    # A topic whose keys do not move may have more.
    growing = [name for name in (alike if partitions is None else names) if now.get(name, wanted) < wanted]

    verdicts = UpdateVerdicts(settings, bundles_of_pipelines(settings, serving), formats_of(settings, rows=True))
    updates = MovedKeys(topics.item_updates, wanted)
    movers = [KeyMover(settings, updates, verdicts, progress)]
    attributes = None
    if (of_attributes := now.get(topics.item_attributes)) is not None:
        attributes = MovedKeys(topics.item_attributes, of_attributes if partitions is None else wanted)
        movers.append(KeyMover(settings, attributes, AttributesVerdicts(updates.staying), progress))
    moving = [mover.topic for mover in movers]
    require_own_times(kafka, [*moving, *codes])
    missing = () if partitions is None else tuple(name for name in names if name not in now)
    if dry_run:
        for mover in movers:
            mover.count()
        return RepartitionOutcome(updates, attributes, missing=missing)
    grown = tuple(grow(kafka, growing, wanted))
    with ExitStack() as kept:
        for topic in moving:
            kept.enter_context(kept_from_compaction(kafka, topic))
        move_everything(settings, movers, patience_seconds)
    return RepartitionOutcome(updates, attributes, grown, missing)


def _growing(settings: Settings, codes: Sequence[str]) -> list[str]:
    """Every topic that has ``topics.partitions``, ``codes`` first, and each before the one that its records come of."""
    specs = reversed(topic_specs(settings))
    return [*codes, *(spec.name for spec in specs if spec.grows and spec.name != settings.topics.item_codes)]
