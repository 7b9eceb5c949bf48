"""What must hold once everything was read: index, counts, answers, dead letters and topics against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from chaos.producers import Coordinates, Truth
from models.bundles.bundle import Bundle
from models.codebooks.onnx_encoder import OnnxEncoder
from models.sids.census import count_tokens
from store.checks.verification import verify
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from store.topology.current import CurrentTopology
from streamer.events.records import (
    ALERT,
    ANSWER,
    DRIFT,
    ITEM_CODES,
    LAYOUT,
    TOKEN_COUNT,
    Answer,
    TokenCount,
    token_count_key,
)
from streamer.events.topics import monitor_changelog
from streamer.monitor.token_state import decode_state
from streamer.settings import Settings
from support.processes import committed_records

_TRANSACTIONAL: Final = (
    "item_codes",
    "item_updates_dead_letters",
    "results",
    "queries_dead_letters",
    "layouts",
    "alerts",
)


def check_everything(settings: Settings, truth: Truth) -> dict[str, int]:
    """All of the issue's list but the rebuild; the figures of what was compared."""
    bundle = Bundle.open(settings.bundle)
    encoder = OnnxEncoder(bundle.encoder_path)
    with IndexReader(settings.index) as reader, reader.snapshot() as snapshot:
        check_index(snapshot, truth, encoder)
        census = snapshot.census()
        layouts = {layout.generation: layout.head_tokens for layout in snapshot.layouts()}
    codes = check_item_codes(settings, truth)
    topics = settings.topics
    check_dead_letters(settings, topics.item_updates_dead_letters, truth.malformed_updates)
    check_dead_letters(settings, topics.queries_dead_letters, truth.malformed_queries)
    letters = check_letters_of_attributes(settings, truth.malformed_attributes)
    answered = check_answers(settings, truth)
    check_counts(settings, census, bundle.layout.codebook_id)
    issued = check_layouts(settings, layouts)
    for topic, codec in ((topics.alerts, ALERT), (topics.drift, DRIFT)):
        for record in committed_records(settings, topic):
            codec.decode(record.value())
    return {
        "live items": len(truth.live()),
        "item-codes records": codes,
        "dead letters": len(truth.malformed_updates) + len(truth.malformed_queries) + letters,
        "answers": answered,
        "layouts issued": issued,
    }


def check_topology(snapshot: Snapshot, followed: CurrentTopology, rolled_forward: int) -> None:
    """A topology that was rolled forward through all faults has the paths of the index, and no other."""
    assert rolled_forward > 0
    topology = followed.at(snapshot)
    paths = np.unique(np.concatenate([codes for codes, _ in snapshot.all_paths()]), axis=0)
    assert len(topology) == len(paths)
    assert topology.contains(paths).all()


def check_index(snapshot: Snapshot, truth: Truth, encoder: OnnxEncoder) -> None:
    """The index equals the truth item by item, attributes too; the census equals a recount and the truth's."""
    live = truth.live()
    assert snapshot.item_count == len(live)
    codes = encoder.encode(np.array([item.embedding for item in live.values()], dtype=np.float32))
    stored = snapshot.find([name.encode() for name in live])
    for found, (name, item), expected in zip(stored, live.items(), codes, strict=True):
        assert found is not None, f"{name} is missing"
        facts = (found.codes, found.title, found.weight, found.updated_at)
        assert facts == (tuple(expected.tolist()), item.title, item.weight, item.updated_at), name
    attributes = snapshot.attributes([found.number for found in stored if found is not None])
    for own, (name, item) in zip(attributes, live.items(), strict=True):
        assert own == item.attributes | truth.alone.get(name, {}), name
    assert verify(snapshot) == []
    np.testing.assert_array_equal(snapshot.census(), snapshot.recount())
    np.testing.assert_array_equal(snapshot.census(), count_tokens(codes, encoder.size))


def check_item_codes(settings: Settings, truth: Truth) -> int:
    """An update's codes are on the topic at most as often as it was sent, and an item's in the order of sending."""
    seen: Counter[tuple[str, int]] = Counter()
    for record in committed_records(settings, settings.topics.item_codes):
        name = record.key().decode()
        assert name in truth.items, f"nobody published {name}"
        if record.value() is not None:
            seen[name, ITEM_CODES.decode(record.value()).updated_at] += 1
    twice = {update: count for update, count in seen.items() if count > truth.sent[update]}
    assert not twice, f"codes more often than their update: {dict(list(twice.items())[:5])}"
    return seen.total()


def check_dead_letters(settings: Settings, topic: str, malformed: set[Coordinates]) -> None:
    """Each malformed event is there exactly once, with the coordinates that the broker gave it."""
    found = Counter(_source(letter) for letter in committed_records(settings, topic))
    _same(topic, found, malformed)


def check_letters_of_attributes(settings: Settings, malformed: set[Coordinates]) -> int:
    """Each malformed record of attributes is there at least once: the indexer's letters are in no transaction of Kafka's."""
    found = {_source(letter) for letter in committed_records(settings, settings.topics.item_attributes_dead_letters)}
    assert found == malformed
    return len(found)


def check_answers(settings: Settings, truth: Truth) -> int:
    """Every query has exactly one result; an answer names items that were published."""
    found: Counter[str] = Counter()
    for record in committed_records(settings, settings.topics.results):
        answer: Answer = ANSWER.decode(record.value())
        assert record.key().decode() == answer.query_id
        found[answer.query_id] += 1
        unknown = [item.item_id for item in answer.items if item.item_id not in truth.items]
        assert not unknown, f"{answer.query_id} names items that never were: {unknown}"
    _same(settings.topics.results, found, truth.queries)
    return found.total()


def check_counts(settings: Settings, census: NDArray[np.int64], codebook: str) -> None:
    """The newest published count of every token, and Faust's table as its changelog keeps it, equal the census."""
    published: dict[bytes, TokenCount] = {}
    for record in committed_records(settings, settings.topics.token_counts):
        count: TokenCount = TOKEN_COUNT.decode(record.value())
        known = published.get(record.key())
        if known is None or count.as_of >= known.as_of:
            published[record.key()] = count
    changelog = monitor_changelog(settings)
    table = {record.key(): decode_state(record.value()) for record in committed_records(settings, changelog)}
    keys = {token_count_key(codebook, layer + 1, token): (layer, token) for layer, token in np.ndindex(census.shape)}
    assert published.keys() == keys.keys() == table.keys()
    for key, place in keys.items():
        assert published[key].n == census[place], f"published {key!r}"
        assert table[key].n == census[place], f"Faust's table {key!r}"


def check_layouts(settings: Settings, stored: dict[int, tuple[int, ...]]) -> int:
    """Generations were issued once each, without a gap, and the index holds them as they were issued."""
    issued = [LAYOUT.decode(record.value()) for record in committed_records(settings, settings.topics.layouts)]
    generations = [layout.generation for layout in issued]
    assert generations == list(range(generations[0], generations[0] + len(generations))) if generations else True
    assert {layout.generation: tuple(layout.head_tokens) for layout in issued}.items() <= stored.items()
    return len(issued)


def aborted_records(settings: Settings) -> dict[str, int]:
    """By topic: records in the log that belong to aborted transactions, which only readers of uncommitted ones see."""
    found = {}
    for name in _TRANSACTIONAL:
        topic = getattr(settings.topics, name)
        everything = len(committed_records(settings, topic, committed=False))
        found[topic] = everything - len(committed_records(settings, topic))
    return found


def rebuilt_digest(settings: Settings, directory: Path) -> str:
    """Digest of an index that is rebuilt from the topics."""
    from streamer.indexer.rebuild import rebuild

    return rebuild(settings, directory).digest


def _source(letter: Message) -> Coordinates:
    headers = dict(letter.headers())
    return (
        headers["dlq.errors.topic"].decode(),
        int(headers["dlq.errors.partition"]),
        int(headers["dlq.errors.offset"]),
    )


def _same(topic: str, found: Counter, expected: Iterable) -> None:  # type: ignore[type-arg]
    wanted = Counter(expected)
    missing, surplus = wanted - found, found - wanted
    assert not missing, f"{topic} lacks {missing.total()}: {list(missing)[:5]}"
    assert not surplus, f"{topic} has {surplus.total()} too many: {list(surplus)[:5]}"
