"""The settings of what writes the index: assigner and indexer, and how both work beside the pipeline that answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from streamer.settings.records import IntakeSettings
from streamer.settings.section import Section
from streamer.shards.partitions import EVERY, numbers_of, text_of


class AssignerSettings(IntakeSettings):
    """Item updates → codes."""

    group: str = Field("sidstream-assigner", description="the consumer group, after topics.prefix")
    instance: str = Field("0", description="stable name of this instance; unique within the group")
    batch_size: int = Field(8_000, ge=1, description="events a transaction at the most")
    minimum_batch_interval_ms: float = Field(
        5.0, ge=0, description="between the beginnings of two transactions; more are larger batches, and less work"
    )
    maximum_event_bytes: int = Field(262_144, ge=1_024, description="larger events are dead letters")
    maximum_title_characters: int = Field(8_192, ge=0, description="events with a longer title are dead letters")
    maximum_weight: float = Field(1e12, gt=0, le=1e30, description="events with a greater weight are dead letters")
    strict: bool = Field(False, description="updates with an unknown field are dead letters, not merely counted")
    vectors: bool = Field(
        True,
        description="keep each item's vector, a byte a dimension, beside its codes: new items are found by it (retriever.dense); "
        "it takes D + 4 bytes an item in item-codes and in the index",
    )
    encoder_threads: int = Field(1, ge=1, description="of ONNX Runtime; the codes are the same with any number")
    accept_missed_updates: bool = Field(
        False, description="start although updates or deletions may have been missed; for one start (docs/runbook.md)"
    )


class IndexerSettings(Section):
    """Codes → LMDB, and the census' counts → monitor."""

    partitions: str = Field(
        EVERY,
        description="of item-codes and item-attributes that this host's index holds, as 0-3,6 or a list: a shard; absent: all "
        "(docs/scale.md)",
    )
    batch_size: int = Field(
        30_000, ge=1, description="records an LMDB transaction at the most, near the end of the topic"
    )
    catching_up_batch_size: int = Field(
        400_000,
        ge=1,
        description="far behind it, half of what waits and at the most this; two or three kilobytes of memory a record, "
        "a gigabyte for all of these",
    )
    map_bytes: int = Field(
        1 << 30, ge=1 << 16, description="address space that a new index begins with; doubled whenever it is full"
    )
    minimum_batch_interval_ms: float = Field(
        5.0, ge=0, description="between the beginnings of two transactions; more are larger batches, and less work"
    )
    counts_interval_seconds: float = Field(1.0, gt=0, description="how often changed counts are published")
    maximum_items: int = Field(
        0,
        ge=0,
        description="new items beyond so many are dead letters (IndexFull), known ones are updated; 0: no limit",
    )
    order: Literal["arrival", "updated_at"] = Field(
        "arrival",
        description="which of two updates of an item counts: arrival: the later one in its partition, as Kafka's compaction "
        "keeps it; updated_at: the one with the greater updated_at. Compaction knows offsets alone: once it has removed "
        "the newer update, a rebuild has the older one, which came later",
    )

    @field_validator("partitions", mode="before")
    @classmethod
    def _one_text(cls, given: Any) -> Any:
        if isinstance(given, int) and not isinstance(given, bool):
            given = [given]
        if isinstance(given, list | tuple):
            given = ",".join(map(str, given))
        return text_of(numbers_of(given.strip())) if isinstance(given, str) else given


class GenerationSettings(Section):
    """A codebook's pipeline beside the one that answers; on a machine of its own, share 1 and no interval."""

    catching_up_share: float = Field(
        0.33,
        gt=0,
        le=1,
        description="part of the time that its assigner and its indexer work until they have caught up; they rest in between",
    )
    catching_up_batch: int = Field(1_000, ge=1, description="records that they take at once until then")
    beside_batch_interval_ms: float = Field(
        50.0,
        ge=0,
        description="least time between their batches, a canary's and a previous one's too: each costs a transaction and a sync",
    )
