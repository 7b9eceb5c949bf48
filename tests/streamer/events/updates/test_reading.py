"""A batch of updates gives what each of its records gives alone, whatever neighbours a record has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from streamer.events.intake import EventError, EventLimits
from streamer.events.updates.batch import Update
from streamer.events.updates.checks import OtherModelError, UpdateLimits
from streamer.events.updates.reading import UpdateIntake

DIMENSION = 2
NOW = 1_767_323_045_000
TIME = 1_766_000_000_000
EMBEDDING = bytes(range(4 * DIMENSION))

odd_ids = [
    b"x" * 257,
    b"a\nb",
    b" a",
    b"a ",
    b'"a"',
    b"{a",
    b"[a",
    b"\xff\xfe",
    b"",
    None,
    (5).to_bytes(8),
    b"\x00" * 8,
]
ids = st.sampled_from([b"sku-1", b"sku-2", "Gr\u00f6\u00dfe".encode(), b"x" * 256, b"a b", "\u2028".encode(), *odd_ids])
fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "embedding": st.sampled_from(
            [EMBEDDING, EMBEDDING, EMBEDDING[:4], EMBEDDING[:5], b"", [1.0, 2.0], [1.0] * 8, [], None, "text"]
        )
    },
    optional={
        "title": st.sampled_from(["", "Kettle", "x" * 20, "x" * 21, "\u00e4" * 20, 3]),
        "weight": st.sampled_from([0, 1, 2.5, 10.0, 10.1, -0.0, -1, float("nan"), float("inf"), "1"]),
        "updated_at": st.sampled_from(
            [
                None,
                NOW,
                NOW - 1,
                NOW + 1,
                NOW + 86_400_001,
                0,
                -1,
                631_152_000_000,
                631_151_999_999,
                2**63,
                1_766_000_000,
                1.5,
            ]
        ),
        "dtype": st.sampled_from(["float32", "float16", "float64", None]),
        "id": st.sampled_from(["sku-1", 5, None, [1]]),
        "item_id": st.sampled_from(["sku-1", True]),
        "attributes": st.sampled_from([{}, {"price": 30.0}, {"a": {"b": 1}}, [1]]),
        "embedding_model": st.sampled_from(["model-b", "model-c", ""]),
        "record_version": st.sampled_from([1, 2]),
        "titel": st.just("Kettle"),
        "price": st.just(1),
    },
)
whole = st.builds(
    lambda found, encode: encode(found), fields, st.sampled_from([msgspec.msgpack.encode, msgspec.json.encode])
)
values = st.one_of(
    whole,
    st.sampled_from(
        [None, b"", b"\x80", b"{}", b"\x93\x01\x02\x03", b"no update", b"\xc1", b"\x91" * 3_000, bytes(400)]
    ),
    st.builds(lambda value, end: value[:end], whole, st.integers(0, 30)),
)
EVENTS = [
    [("ce_specversion", b"1.0"), ("ce_time", time)]
    for time in (b"2026-01-01T00:00:00Z", b"2999-01-01T00:00:00Z", b"soon")
] + [
    [("content-type", b"application/msgpack; dtype=float16")],
    [("content-type", b"application/cloudevents+json")],
    [("content-type", b"application/msgpack"), ("trace", b"1")],
]
headers = st.sampled_from(
    [None] * 4 + [[], [("trace", b"1")], [("content-type", b"text/plain")], [("n", b"")] * 3, *EVENTS]
)
stamps = st.sampled_from([(1, TIME), (1, TIME), (1, NOW + 1), (1, 5), (0, -1), (2, 0)])
records = st.builds(
    lambda key, value, said, stamp, partition: Message(
        topic="item-updates", key=key, value=value, headers=said, timestamp=stamp, partition=partition, offset=7
    ),
    ids,
    values,
    headers,
    stamps,
    st.integers(0, 2),
)


def intake(strict: bool, model: str | None) -> UpdateIntake:
    limits = UpdateLimits(
        EventLimits(300, 2, 100), title_characters=20, weight=10.0, dimension=DIMENSION, embedding_model=model
    )
    return UpdateIntake(limits, strict=strict)


@given(batch=st.lists(records, max_size=12), strict=st.booleans(), model=st.sampled_from([None, None, "model-b"]))
def test_batch_gives_what_its_records_give_alone(batch: list[Message], strict: bool, model: str | None) -> None:
    together, alone = intake(strict, model), intake(strict, model)
    updates, rejected, others = [], [], 0
    for record in batch:
        try:
            updates.append(alone.read(record, NOW))
        except EventError as error:
            rejected.append((record, error.kind, str(error)))
        except OtherModelError:
            others += 1
    found = together.read_batch(batch, NOW)
    columns = (found.titles, found.weights, found.updated_at, found.attributes)
    rows = zip(found.records, found.ids, found.embeddings, *columns, strict=True)
    assert [
        Update(record, item_id, embedding, place in found.guessed, *rest)
        for place, (record, item_id, embedding, *rest) in enumerate(rows)
    ] == updates
    assert [(record, error.kind, str(error)) for record, error in found.rejected] == rejected
    assert found.stamps == [update.record.timestamp()[1] for update in updates]
    assert found.others == others
    assert together.unknown_fields == alone.unknown_fields


@pytest.mark.parametrize("size", [0, 1, 3])
def test_batch_of_ordinary_updates_is_not_read_one_by_one(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = intake(strict=False, model=None)
    monkeypatch.setattr(reader, "_alone", None)
    value = msgspec.msgpack.encode({"embedding": EMBEDDING, "title": "Kettle"})
    batch = [
        Message(topic="t", key=b"sku-%d" % row, value=value, timestamp=(1, TIME), partition=0) for row in range(size)
    ]
    found = reader.read_batch(batch, NOW)
    assert found.ids == [b"sku-0", b"sku-1", b"sku-2"][:size]
    assert (found.titles, found.updated_at) == (["Kettle"] * size, [TIME] * size)
