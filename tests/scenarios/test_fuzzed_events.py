"""A hundred thousand events that nobody should send: each has exactly one outcome, and no exception leaves the batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from numpy.typing import NDArray

from models.attributes import AttributeType, encode_attributes, type_of
from models.bundles.bundle import Bundle
from models.errors import SidstreamError
from store.checks.verification import verify
from store.writing.writer import IndexWriter
from streamer.assigner.assign_batch import AssignBatch
from streamer.events.intake import AttributesIntake, EventError
from streamer.events.records import ITEM_CODES
from streamer.events.values.foreign_formats import foreign_key
from streamer.indexer.codes import codes_batch
from streamer.indexer.process import Indexer
from streamer.monitor.agent import checked_count
from streamer.monitor.token_state import WindowShape, apply_count, decode_state, encode_state
from streamer.process.health import Health
from streamer.settings import load_settings
from streamer.settings.pipeline import AssignerSettings
from streamer.settings.records import AttributeSettings
from support.fuzzing import Fuzzer

DIMENSION = 4
INPUTS = 200  # an example
EXAMPLES = 500
DECLARED: dict[str, AttributeType] = {"price": "number", "brand": "string", "in_stock": "boolean", "tags": "strings"}
RULES = AttributeSettings(filterable=DECLARED).rules()


class SumEncoder:
    codebook_id = "cafe0123cafe0123"
    dimension = DIMENSION

    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]:
        assert np.isfinite(embeddings).all()
        assert embeddings.any(axis=1).all(), "a zero vector has no code"
        return np.zeros((len(embeddings), 3), np.uint16)


def valid_update(choose: random.Random) -> dict[str, Any]:
    numbers = [choose.uniform(-2, 2) for _ in range(DIMENSION)]
    embedding: Any = numbers if choose.random() < 0.5 else np.array(numbers, choose.choice(["<f4", "<f2"])).tobytes()
    fields = {"embedding": embedding, "title": "Kettle", "weight": 2.5, "updated_at": 1_767_323_045_000}
    if choose.random() < 0.2:
        fields |= choose.choice(
            [{"dtype": "float16"}, {"dtype": "bfloat16"}, {"id": "item-1"}, {"item_id": 5}, {"brand": "Alta"}]
        )
    if choose.random() < 0.5:
        fields["attributes"] = valid_attributes(choose)
    return fields


def valid_attributes(choose: random.Random) -> dict[str, Any]:
    fields = {
        "price": choose.choice([0, 30, 29.95]),
        "brand": "Acme",
        "in_stock": True,
        "tags": ["red", "blue"],
        "x.y": "",
    }
    return dict(choose.sample(sorted(fields.items()), choose.randrange(len(fields) + 1)))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32))
def test_every_fuzzed_event_becomes_codes_a_tombstone_or_a_dead_letter(seed: int) -> None:
    records = Fuzzer(seed, "item-updates", valid_update, lambda offset: f"item-{offset}".encode()).records(INPUTS)
    assign = AssignBatch(
        SumEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=AssignerSettings(), attributes=RULES
    )
    outgoing = assign(records)
    letters = [dict(out.headers or []) for out in outgoing if out.topic == "dlq"]
    rejected = [int(letter["dlq.errors.offset"]) for letter in letters]
    assert len(rejected) == len(set(rejected)), "no event is two dead letters"
    assert all(letter["dlq.errors.message"] and letter["dlq.errors.class"].isalpha() for letter in letters)
    assert all(letter["dlq.errors.message"].decode().isprintable() for letter in letters), "a terminal may show it"
    # What is left is sent on, once an item.
    accepted = {record.key(): record for record in records if record.offset() not in set(rejected)}
    assert all(foreign_key(key) is None for key in accepted), "no serializer's bytes become an id"
    sent = Counter(out.key for out in outgoing if out.topic == "codes")
    assert sent == dict.fromkeys(accepted, 1)
    for out in outgoing:
        if out.topic == "codes":
            assert (out.value is None) == _deletes(accepted[out.key].value()), "the last event of an item"
            if out.value is not None:
                codes = ITEM_CODES.decode(out.value)
                assert np.isfinite(codes.weight)
                assert codes.updated_at == 0 or codes.updated_at > 631_152_000_000
                if codes.attributes is not UNSET:
                    assert_fit(bytes(codes.attributes))


def _deletes(value: bytes | None) -> bool:
    """Whether a value deletes: there is none, or Kafka Connect's JSON says that there is none."""
    if value is None:
        return True
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"schema", "payload"} and found["payload"] is None


def assert_fit(canonical: bytes) -> None:
    """Attributes that were let through are within every rule, and in their one form."""
    attributes = RULES.read(canonical, of_json=False)
    assert encode_attributes(attributes) == canonical
    assert all(type_of(value) == DECLARED.get(name, type_of(value)) for name, value in attributes.items())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_every_fuzzed_record_of_attributes_is_read_or_refused_by_an_error_with_words(seed: int) -> None:
    def event(choose: random.Random) -> dict[str, Any]:
        return {"attributes": valid_attributes(choose)}

    intake = AttributesIntake(AttributeSettings(filterable=DECLARED))
    read, messages = 0, list[str]()
    for record in Fuzzer(seed, "item-attributes", event, lambda offset: f"item-{offset}".encode()).records(INPUTS):
        try:
            found = intake.read(record)
        except EventError as error:
            messages.append(f"{error.kind}: {error}")
            continue
        assert (found.attributes is None) == _deletes(record.value())
        if found.attributes is not None:
            assert_fit(found.attributes)
        read += 1
    assert all(message.isprintable() for message in messages), "a terminal may show it"
    assert min(read, len(messages)) > 2  # of any seed: some of both


@pytest.fixture
def indexer(tiny_bundle: Path, tmp_path: Path) -> Any:
    layout = Bundle.open(tiny_bundle).layout
    with IndexWriter.open(
        tmp_path / "index", codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size
    ) as writer:
        yield Indexer(load_settings(), writer, layout, Health())


def test_every_fuzzed_record_of_codes_and_layouts_is_applied_or_refused_by_an_error_of_ours(indexer: Indexer) -> None:
    """Only our own processes write these topics: what they never write ends the indexer with a message, and no other way."""
    layout = indexer._codebook

    def codes(_choose: random.Random) -> dict[str, Any]:
        fields = {"codebook": layout.codebook_id, "codes": [1, 2, 3], "title": "Kettle", "weight": 1.0}
        return {**fields, "updated_at": 1_767_323_045_000}

    def layouts(choose: random.Random) -> dict[str, Any]:
        fields = {"codebook": layout.codebook_id, "generation": choose.randrange(9), "layers": 3, "size": 16}
        return {**fields, "head_tokens": [1, 4], "issued_at": 1_767_323_045_000, "cause": "a test"}

    outcomes = Counter[str]()
    codes_records = Fuzzer(1, "item-codes", codes, lambda offset: f"item-{offset}".encode()).records(3_000)
    layout_records = Fuzzer(2, "layouts", layouts, lambda offset: f"{offset}".encode()).records(3_000)
    for record in codes_records:
        outcomes[_outcome(lambda record=record: indexer._writer.apply(codes_batch([record], layout), {}))] += 1  # type: ignore[misc]
    for record in layout_records:
        outcomes[_outcome(lambda record=record: indexer._put_layout(record))] += 1  # type: ignore[misc]
    assert outcomes["applied"] > 500
    assert outcomes["refused"] > 500
    with indexer._writer.snapshot() as snapshot:
        assert verify(snapshot) == []


def _outcome(act: Any) -> str:
    try:
        act()
    except SidstreamError:
        return "refused"
    return "applied"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_every_fuzzed_count_is_taken_or_skipped_by_the_monitor(seed: int) -> None:
    def count(choose: random.Random) -> dict[str, Any]:
        return {
            "codebook": "cafe0123cafe0123",
            "layer": 2,
            "token": 7,
            "n": choose.randrange(99),
            "as_of": choose.randrange(99),
        }

    shape = WindowShape.of(10.0, 6)
    taken = skipped = 0
    for record in Fuzzer(seed, "token-counts", count, lambda offset: b"key").records(INPUTS):
        found = checked_count(record.value())
        if found is None:
            skipped += 1
            continue
        state = apply_count(None, found, 1_767_323_045_000, shape, now=1_767_323_045_000)
        assert state is not None
        assert decode_state(encode_state(state)) == state
        taken += 1
    assert taken + skipped == INPUTS
    assert taken > 10
