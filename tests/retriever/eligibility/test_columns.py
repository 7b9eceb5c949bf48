"""Filters over columns: whatever came, changed and went, exactly the items that the plain meaning lets through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attributes import Attributes
from retriever.eligibility import columns as module
from retriever.eligibility.columns import Columns
from retriever.eligibility.explanation import why_nothing
from streamer.filters.grammar import Filter
from streamer.filters.meaning import matches
from streamer.filters.reading import parsed_filter
from support.filter_cases import ATTRIBUTES, FILTERS, LIMITS, TYPES

NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 8, 1_023, 1_024, 5_000])
CHANGES = st.dictionaries(NUMBERS, st.none() | ATTRIBUTES, max_size=6)


def numbers(of: Sequence[int]) -> Any:
    return np.array(of, np.uint32)


def wanted(asked: Any) -> Filter:
    return parsed_filter(asked, TYPES, LIMITS)


def columns_of(items: dict[int, Attributes]) -> Columns:
    return Columns.build(TYPES, [(numbers(list(items)), list(items.values()))])


@given(st.lists(CHANGES, max_size=5), st.lists(FILTERS, min_size=1, max_size=3), st.lists(NUMBERS, max_size=3))
def test_items_that_are_let_through_are_those_of_the_plain_meaning(
    steps: list[dict[int, Attributes | None]], filters: list[Any], excluded: list[int]
) -> None:
    columns = Columns(TYPES)
    live: dict[int, Attributes] = {}
    for step in steps:
        columns.update(numbers(list(step)), list(step.values()))
        for number, attributes in step.items():
            live.pop(number, None)
            if attributes is not None:
                live[number] = attributes
    everything = numbers([*range(10), 1_023, 1_024, 5_000, 70_000])
    for one in map(wanted, filters):
        expected = sorted(number for number, attributes in live.items() if matches(one, attributes, TYPES))
        assert columns.eligible(one).tolist() == expected
        assert columns.eligible(one).dtype == np.uint32
        assert columns.count(one) == len(expected)
        assert columns.eligible(one, excluded).tolist() == [one for one in expected if one not in excluded]
        assert columns.eligible(one, numbers(excluded)).tolist() == columns.eligible(one, excluded).tolist()
        assert everything[columns.lets_through(one, everything)].tolist() == expected
    assert columns.eligible(None).tolist() == sorted(live)
    assert columns.eligible(None, [*excluded, 4_000_000_000]).tolist() == sorted(live.keys() - set(excluded))
    assert len(columns.eligible(None)) == len(live)


@given(st.dictionaries(NUMBERS, ATTRIBUTES), FILTERS)
def test_columns_built_in_blocks_are_those_of_single_updates(items: dict[int, Attributes], asked: Any) -> None:
    one_by_one = Columns(TYPES)
    for number, attributes in items.items():
        one_by_one.update(numbers([number]), [attributes])
    assert columns_of(items).eligible(wanted(asked)).tolist() == one_by_one.eligible(wanted(asked)).tolist()


def test_answer_outlives_the_next_update() -> None:
    columns = columns_of({0: {"price": 1}, 1: {"price": 2}})
    before = columns.eligible(wanted({"field": "price", "gte": 1}))
    columns.update(numbers([0, 1]), [{"price": 0}, None])
    assert before.tolist() == [0, 1]


@pytest.mark.parametrize("field", ["brand", "tags"])
def test_values_that_no_item_has_any_more_are_forgotten(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field whose text changes all the time must not grow without bound."""
    monkeypatch.setattr(module, "_FIRST_CAPACITY", 4)
    monkeypatch.setattr(module, "_UNUSED_KEPT", 4)
    columns = Columns(TYPES)

    def value(text: str) -> Attributes:
        return {field: text} if field == "brand" else {field: [text, "always"]}

    for turn in range(200):
        columns.update(numbers([0, 1]), [value(f"text {turn}"), value("same")])
        operator = "eq" if field == "brand" else "contains"
        for text, expected in ((f"text {turn}", [0]), ("same", [1]), (f"text {turn - 1}", [])):
            assert columns.eligible(wanted({"field": field, operator: text})).tolist() == expected
    column: Any = columns._columns[field]
    assert len(column._known if field == "brand" else column._tuples) < 20
    assert field == "brand" or len(column._holders) == 3


def test_values_of_another_type_than_the_declared_one_are_counted_and_missing() -> None:
    columns = columns_of(
        {0: {"price": "9", "brand": 1, "tags": "a", "in_stock": 1}, 1: {"price": True, "tags": []}, 2: {}}
    )
    assert columns.mistyped == {"price": 2, "brand": 1, "tags": 1, "in_stock": 1}
    assert columns.eligible(wanted({"field": "price", "exists": True})).tolist() == []
    assert columns.eligible(wanted({"field": "tags", "exists": True})).tolist() == [1]


def test_why_nothing_is_eligible_names_what_each_clause_lets_through() -> None:
    columns = columns_of({0: {"price": 10, "brand": "Acme"}, 1: {"price": 50, "brand": "Bosch"}, 2: {}})
    asked = wanted({"all": [{"field": "price", "lte": 30}, {"field": "brand", "eq": "Bosch"}]})
    assert why_nothing(asked, columns, live=3, excluded=0) == (
        "the filter lets none of 3 items through. Each clause alone lets through "
        '{"field":"brand","eq":"Bosch"}: 1, {"field":"price","lte":30}: 1'
    )
    some = wanted({"field": "price", "lte": 30})
    assert why_nothing(some, columns, live=3, excluded=2).startswith(
        "the filter lets 1 of 3 items through, and the query excludes all of them (2 are excluded"
    )
    assert why_nothing(None, columns, live=3, excluded=3).startswith(
        "all 3 items of the index are excluded by the query"
    )
    many = wanted({"all": [{"field": "price", "lt": -number} for number in range(1, 13)]})
    assert "and 4 more clauses" in why_nothing(many, columns, live=3, excluded=0)
