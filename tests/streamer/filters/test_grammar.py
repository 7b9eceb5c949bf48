"""The canonical form: equal filters are equal however they were written, and the form, read again, is itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.filters.grammar import Compare, Exists, all_of, canonical_bytes, fields_of, none_of, one_of, to_json
from streamer.filters.reading import parsed_filter
from support.filter_cases import FILTERS, LIMITS, TYPES


def key(asked: Any) -> bytes:
    return canonical_bytes(parsed_filter(asked, TYPES, LIMITS))


@given(FILTERS)
def test_canonical_form_read_again_is_itself(asked: dict[str, Any]) -> None:
    once = parsed_filter(asked, TYPES, LIMITS)
    again = parsed_filter(to_json(once), TYPES, LIMITS)
    assert again == once
    assert hash(again) == hash(once)
    assert canonical_bytes(again) == canonical_bytes(once)
    assert fields_of(once) <= TYPES.keys()


def rewritten(asked: Any, choose: random.Random) -> Any:
    """The same in other words: parts in another order, some twice, nested once more, bounds in clauses of their own."""
    for name in ("all", "any"):
        if name in asked:
            parts = [rewritten(part, choose) for part in asked[name]]
            parts += choose.choices(parts, k=choose.randrange(2))
            choose.shuffle(parts)
            if len(parts) > 2 and choose.random() < 0.5:
                parts = [{name: parts[:2]}, *parts[2:]]
            return {name: parts}
    if "not" in asked:
        inner = {"not": rewritten(asked["not"], choose)}
        return {"not": {"not": inner}} if choose.random() < 0.3 else inner
    clauses = [(name, wanted) for name, wanted in asked.items() if name != "field"]
    clauses = [(name, [*wanted, wanted[0]][::-1] if isinstance(wanted, list) else wanted) for name, wanted in clauses]
    clauses = [
        (name, float(wanted) if type(wanted) is int and choose.random() < 0.5 else wanted) for name, wanted in clauses
    ]
    choose.shuffle(clauses)
    if choose.random() < 0.5:
        return {"all": [{"field": asked["field"], name: wanted} for name, wanted in clauses]}
    return dict([*clauses, ("field", asked["field"])])


@given(FILTERS, st.integers(0, 1_000))
def test_filter_in_other_words_has_the_same_key(asked: dict[str, Any], seed: int) -> None:
    assert key(rewritten(asked, random.Random(seed))) == key(asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"field": "price", "lte": 30}, {"field": "price", "lte": 30.0}),
        (
            {"field": "brand", "in": ["b", "a", "b"]},
            {"any": [{"field": "brand", "eq": "a"}, {"field": "brand", "eq": "b"}]},
        ),
        ({"field": "brand", "in": ["a"]}, {"field": "brand", "eq": "a"}),
        ({"field": "tags", "contains_all": ["a"]}, {"field": "tags", "contains_any": ["a"]}),
        ({"field": "price", "eq": 0}, {"field": "price", "eq": -0.0}),
        ({"field": "price", "exists": False}, {"not": {"field": "price", "exists": True}}),
        ({"field": "price", "gte": 1, "lt": 9}, {"all": [{"field": "price", "lt": 9}, {"field": "price", "gte": 1}]}),
    ],
)
def test_two_ways_to_say_one_thing_share_a_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(one) == key(other)


def test_different_filters_have_different_keys_and_one_is_the_same_in_every_process() -> None:
    different: list[dict[str, Any]] = [
        {"field": "price", "lt": 30}, {"field": "price", "lte": 30}, {"field": "size", "lt": 30},
        {"field": "brand", "eq": "true"}, {"field": "in_stock", "eq": True}, {"not": {"field": "price", "lt": 30}},
        {"field": "brand", "eq": "a"}, {"field": "tags", "contains": "a"}, {"field": "brand", "ne": "a"},
    ]  # fmt: skip
    assert len({key(one) for one in different}) == len(different)
    written = all_of([Compare("price", "lte", 30.0), one_of("brand", ["Acme"]), none_of(Exists("size"))])
    assert to_json(written) == {
        "all": [
            {"field": "brand", "eq": "Acme"},
            {"field": "price", "lte": 30},
            {"not": {"field": "size", "exists": True}},
        ]
    }
