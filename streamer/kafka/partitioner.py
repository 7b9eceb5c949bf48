"""Which partition a key belongs into, and whether a topic's producers agree: Java's murmur2, which is everybody's here.

The order of one key's records is kept within a partition alone, and compaction keeps the newest of each partition. librdkafka's
own default (CRC32) disagrees with murmur2 on 74 % of the keys of four partitions: such a producer beside another one leaves
two states of one item. So a few keys of each batch are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from confluent_kafka import Message
from prometheus_client import Counter

from streamer.events.headers import UnreadableHeadersError, headers_of

log = structlog.get_logger(__name__)

SAMPLED_KEYS: Final = Counter(
    "sidstream_sampled_keys", "Keys of item-updates whose partition was compared with Kafka's partitioner"
)
MISPLACED_KEYS: Final = Counter(
    "sidstream_misplaced_keys", "Sampled keys that lie in another partition than Kafka's partitioner puts them"
)
# About five microseconds each: 0.2 % of a core at 150,000 updates a second in full batches.
_MOST_SAMPLED: Final = 16
_TOLD_SECONDS: Final = 60.0

# On what ``sidstream topics repartition`` writes: it leaves tombstones behind where a key does not belong.
MOVED_HEADER: Final = "sidstream.moved"

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_32_BITS: Final = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The 32-bit hash of Kafka's Java client (``Utils.murmur2``), 0 to 2**32 - 1.

    >>> murmur2(b"foobar") - 2**32
    -790332482
    """
    hashed = _SEED ^ len(key)
    whole = len(key) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * _MULTIPLIER & _32_BITS
        word = (word ^ word >> 24) * _MULTIPLIER & _32_BITS
        hashed = (hashed * _MULTIPLIER & _32_BITS) ^ word
    if whole < len(key):
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _32_BITS
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _32_BITS
    return hashed ^ hashed >> 15


def _moved(record: Message) -> bool:
    try:
        return any(name == MOVED_HEADER for name, _ in headers_of(record))
    except UnreadableHeadersError:
        return False


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key among ``partitions``: that of Java's clients, and of librdkafka's ``murmur2_random``."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


class PartitionerCheck:
    """Looks at a few keys of each batch of one topic; counts what is misplaced and tells of it once in a while.

    ``partitions``: how many the topic has now. A key is misplaced if it is so under every number seen until now: while a topic
    grows, records of before are still read, and producers learn of its new partitions minutes later.
    """

    def __init__(
        self, topic: str, partitions: Callable[[], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._topic = topic
        self._partitions = partitions
        self._counts: tuple[int, ...] = ()
        self._clock = clock
        self._told_at = float("-inf")
        self._sampled = self._misplaced = 0

    def look(self, records: Sequence[Message]) -> None:
        """Compare a sample of ``records``; never raises, never blocks."""
        if (now := self._partitions()) not in self._counts:
            self._counts = (*self._counts, now)
        if self._counts == (1,):
            return
        example: Message | None = None
        sampled = misplaced = 0
        for record in records[:: -(-len(records) // _MOST_SAMPLED) or 1]:
            if not (key := record.key()):
                continue
            sampled += 1
            hashed, partition = murmur2(key) & 0x7FFFFFFF, record.partition()
            if all(hashed % count != partition for count in self._counts) and not _moved(record):
                misplaced += 1
                example = record
        if sampled:
            SAMPLED_KEYS.inc(sampled)
        if example is not None:
            MISPLACED_KEYS.inc(misplaced)
        self._sampled, self._misplaced = self._sampled + sampled, self._misplaced + misplaced
        if example is not None and self._clock() - self._told_at >= _TOLD_SECONDS:
            self._tell(example)

    def _tell(self, example: Message) -> None:
        key = example.key() or b""
        log.warning(
            "keys_misplaced",
            topic=self._topic,
            misplaced=self._misplaced,
            of_sampled=self._sampled,
            example=repr(key),
            partition=example.partition(),
            belongs_into=partition_of(key, self._counts[-1]),
            next="a producer uses another partitioner: set partitioner=murmur2_random in librdkafka's clients (Java's default "
            "is right); then `sidstream topics repartition` brings every item into its partition",
        )
        self._told_at, self._sampled, self._misplaced = self._clock(), 0, 0
