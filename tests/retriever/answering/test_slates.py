"""Slates: greedy over the ranked candidates, in all ways to rank, and more candidates are read until the slate is full."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.attributes import encode_attributes
from models.bundles.bundle import Bundle
from models.bundles.model_of_bundle import load_language_model
from models.codebooks.codebook import Codebook
from models.dense.vectors import quantise
from retriever.answering.admission import Admission, BundleLimits
from retriever.answering.answers import Answerer
from retriever.answering.asked import Asked
from retriever.answering.slates import Group, greedy
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.events.intake import EventError
from streamer.events.records import Answer, Query
from streamer.filters.slate import SlateRule
from streamer.settings.retriever import RetrieverSettings
from support.dense_bundles import dense_bundle

# No more than the dense leg has candidates: the ranking of all is then the one that a slate reads the beginning of.
LIVE, KNOWN = 100, 80
IDS = [f"item-{number}" for number in range(LIVE)]
TYPES: dict[str, Any] = {"shelf": "number", "brand": "string", "sold": "boolean", "tags": "strings"}
BRANDS = ["Acme", "Bosch", "Cato"]


def attributes_of(number: int) -> dict[str, Any]:
    """Every seventh item has none, every fifth a brand of another type."""
    if number % 7 == 0:
        return {}
    brand: Any = 5 if number % 5 == 0 else BRANDS[number % 3]
    return {
        "shelf": number % 4, "brand": brand, "sold": number % 2 == 0, "tags": [f"t{number % 4}", f"t{number % 6}"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def bundle(
    tiny_model_bundle: Path, tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]
) -> Bundle:
    return dense_bundle(tiny_model_bundle, tmp_path_factory.mktemp("slates") / "bundle", tiny_embeddings, IDS[:KNOWN])


@pytest.fixture(scope="module")
def writer(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, tiny_embeddings: NDArray[np.float32]
) -> Iterator[IndexWriter]:
    layout = bundle.layout
    items = CodesBatch(
        ids=[item_id.encode() for item_id in IDS],
        codes=Codebook.load(bundle.codebook_path).encode(tiny_embeddings[np.arange(LIVE) // 3]),  # three items a SID
        weights=np.arange(1, LIVE + 1, dtype=np.float32),
        titles=IDS,
        updated_at=np.zeros(LIVE, np.int64),
        deleted=np.zeros(LIVE, np.bool_),
        vectors=quantise(tiny_embeddings[:LIVE]).encode(),
        attributes=[encode_attributes(attributes_of(number)) for number in range(LIVE)],
    )
    with IndexWriter.open(
        tmp_path_factory.mktemp("slates") / "index",
        codebook_id=layout.codebook_id,
        layers=layout.layers,
        size=layout.size,
    ) as writer:
        writer.apply(items, {("item-codes", 0): LIVE})
        writer.put_layout(layout, {})
        yield writer


def answer_of(bundle: Bundle, writer: IndexWriter, query: Query, **settings: Any) -> Answer:
    model, prompts = load_language_model(bundle)
    answerer = Answerer(
        bundle=bundle,
        model=model,
        prompts=prompts,
        reader=IndexReader(writer.path),
        settings=RetrieverSettings(**{"maximum_limit": LIVE, "beams": LIVE} | settings),
        filterable=TYPES,
    )
    return answerer.answers([Asked("q", query)])[0]


def shared(item_id: str, sid: str, rule: SlateRule) -> list[Any]:
    """What the item is counted by under a rule, said plainly."""
    if rule.per == "sid":
        return [sid]
    if rule.per == "prefix":
        assert isinstance(rule.tokens, int)
        return [tuple(sid.split("><")[: rule.tokens])] if rule.tokens < sid.count("<") else [sid]
    value = attributes_of(int(item_id.removeprefix("item-"))).get(rule.per)
    kinds = {"number": int, "string": str, "boolean": bool, "strings": list}
    if type(value) is not kinds[TYPES[rule.per]]:
        return []
    return sorted(set(value)) if isinstance(value, list) else [value]


def plainly(everything: Answer, rules: Sequence[SlateRule], limit: int) -> list[str]:
    """The slate by looking at all that is chosen so far, for each item anew."""
    chosen: list[tuple[str, str]] = []
    for item in everything.items:
        fits = all(
            sum(value in shared(*other, rule) for other in chosen) < rule.most
            for rule in rules
            for value in shared(item.item_id, item.sid, rule)
        )
        if fits and len(chosen) < limit:
            chosen.append((item.item_id, item.sid))
    return [item_id for item_id, _ in chosen]


SLATES = [
    [SlateRule(per="sid", most=1)],
    [SlateRule(per="prefix", most=2, tokens=1)],
    [SlateRule(per="prefix", most=1, tokens=2)],
    [SlateRule(per="prefix", most=1, tokens=3)],
    [SlateRule(per="brand", most=2)],
    [SlateRule(per="tags", most=1)],
    [SlateRule(per="sold", most=3), SlateRule(per="shelf", most=2)],
    [SlateRule(per="brand", most=3), SlateRule(per="sid", most=1), SlateRule(per="prefix", most=2, tokens=1)],
]


@pytest.mark.parametrize("rules", SLATES)
@pytest.mark.parametrize("way", ["model", "mixture", "dense", "weight_and_recency"])
def test_slate_is_the_plain_greedy_choice_from_the_whole_ranking(
    bundle: Bundle, writer: IndexWriter, tiny_embeddings: NDArray[np.float32], rules: list[SlateRule], way: str
) -> None:
    embedding: Any = tiny_embeddings[90].tolist() if way in ("mixture", "dense") else msgspec.UNSET
    asked: dict[str, Any] = {"text": "" if way == "dense" else "thing number 7", "embedding": embedding}
    settings: dict[str, Any] = {"ranking": way} if way == "weight_and_recency" else {}
    everything = answer_of(bundle, writer, Query(**asked, limit=LIVE), **settings)
    assert len(everything.items) == LIVE
    answer = answer_of(bundle, writer, Query(**asked, limit=40, slate=tuple(rules)), **settings)
    expected = plainly(everything, rules, 40)
    assert [item.item_id for item in answer.items] == expected
    assert expected != [item.item_id for item in everything.items[:40]], "the slate changes something"
    score = {item.item_id: item.score for item in everything.items}
    assert [item.score for item in answer.items] == pytest.approx([score[item] for item in expected], abs=1e-4)


@given(
    groups=st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=4, unique=True), max_size=30),
    most=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    limit=st.integers(1, 12),
)
def test_greedy_leaves_out_exactly_what_exceeds_a_bound(groups: list[list[Group]], most: list[int], limit: int) -> None:
    expected: list[int] = []
    for place, own in enumerate(groups):
        full = any(sum(group in groups[other] for other in expected) >= most[group[0]] for group in own)
        if not full and len(expected) < limit:
            expected.append(place)
    chosen, left_out = greedy(groups, most, limit)
    assert chosen == expected
    looked_at = range(chosen[-1] + 1 if len(chosen) == limit else len(groups))
    assert sorted(chosen + left_out) == list(looked_at)


def test_slate_that_cannot_be_filled_says_so_and_names_what_it_holds_back(bundle: Bundle, writer: IndexWriter) -> None:
    everything = answer_of(bundle, writer, Query(text="thing number 7", limit=LIVE))
    rules = (SlateRule(per="prefix", most=1, tokens=1),)
    firsts = {item.sid.partition(">")[0] for item in everything.items}
    first = everything.items[0].sid.partition(">")[0]
    second = next(item for item in everything.items[1:] if item.sid.partition(">")[0] == first)
    query = Query(text="thing number 7", limit=LIVE, slate=rules, why_not=(second.item_id,))
    answer = answer_of(bundle, writer, query)
    assert len(answer.items) == len(firsts)
    assert f"leaves {LIVE - len(firsts)} of {LIVE} places empty" in str(answer.note)
    assert isinstance(answer.why_not, tuple)
    assert answer.why_not[0].reason == "held_back"


def test_no_more_candidates_are_looked_at_than_the_settings_allow(bundle: Bundle, writer: IndexWriter) -> None:
    rules = (SlateRule(per="shelf", most=1),)
    query = Query(text="thing number 7", limit=4, slate=rules)
    answer = answer_of(bundle, writer, query, maximum_slate_candidates=4)
    best = answer_of(bundle, writer, Query(text="thing number 7", limit=4))
    assert [item.item_id for item in answer.items] == plainly(best, rules, 4)


@pytest.mark.parametrize(
    ("slate", "kind", "said"),
    [
        (
            [{"per": "brnd", "most": 1}],
            "InvalidSlate",
            "slate[0].per: 'brnd' is none that items can be counted by: is brand",
        ),
        ([{"per": "sid", "most": 1}, {"per": "sid", "most": 0}], "InvalidSlate", "slate[1].most: is 0"),
        ([{"per": "prefix", "most": 1}], "InvalidSlate", "slate[0]: per 'prefix' needs tokens"),
        ([{"per": "prefix", "most": 1, "tokens": 4}], "InvalidSlate", "give 1 to 3"),
        ([{"per": "brand", "most": 1, "tokens": 1}], "InvalidSlate", "slate[0].tokens: goes with per 'prefix'"),
        ([{"per": "brand", "most": "two"}], "InvalidEvent", "Expected `int`, got `str` - at `$.slate[0].most`"),
        ([{"per": "brand", "most": 1, "max": 2}], "UnknownField", "there is no field 'max' in slate[0]"),
        ([{"per": "brand"}], "InvalidEvent", "missing required field `most` - at `$.slate[0]`"),
        ([{"per": "sid", "most": 1}] * 9, "FieldTooLarge", "slate has 9 rules"),
    ],
)
def test_slate_that_cannot_be_used_is_refused_by_name(slate: list[Any], kind: str, said: str) -> None:
    admission = Admission(RetrieverSettings(), limits_of=lambda who: BundleLimits(8, 3), filterable=TYPES)
    value = msgspec.json.encode({"text": "x", "slate": slate})
    record = Message(topic="queries", partition=0, offset=0, key=b"q", value=value, timestamp=(1, 1))
    with pytest.raises(EventError, match=re.escape(said)) as caught:
        admission.decode(record)
    assert caught.value.kind == kind
