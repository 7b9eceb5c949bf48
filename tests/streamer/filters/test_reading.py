"""From a query's filter to a typed one: each error names its place, and what would be right there."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.filters.grammar import to_json
from streamer.filters.reading import FilterError, FilterLimits, FilterTooLargeError, parsed_filter, read_filter
from support.filter_cases import FILTERS, LIMITS, TYPES

SMALL = FilterLimits(clauses=4, depth=3, entries=2)


def refused(asked: Any, limits: FilterLimits = LIMITS) -> FilterError:
    with pytest.raises(FilterError) as caught:
        parsed_filter(asked, TYPES, limits)
    return caught.value


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode], ids=["json", "messagepack"])
def test_filter_is_read_from_both_forms(encode: Any) -> None:
    raw = encode({"all": [{"field": "price", "lte": 30}, {"field": "tags", "contains": "red"}]})
    found = read_filter(raw, TYPES, LIMITS, of_json=raw[:1] == b"{")
    assert to_json(found) == {"all": [{"field": "price", "lte": 30}, {"field": "tags", "contains": "red"}]}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "filter: is an empty list: send {"),
        (None, "filter: is null: send {"),
        ({}, "filter: is empty: leave the filter out if every item will do"),
        ({"all": []}, "filter.all: is an empty list: send a list of one or more filters"),
        ({"all": {"field": "price"}}, "filter.all: is an object: send a list"),
        ({"any": [{"field": "price", "lt": 1}, 3]}, r"filter.any\[1\]: is a number: send {"),
        ({"all": [{"field": "price", "lt": 1}], "any": []}, "filter: has 'any' beside 'all', which stands alone"),
        ({"not": {"field": "price", "lt": 1}, "field": "x"}, "filter: has 'field' beside 'not'"),
        ({"al": []}, "filter: has no field, all, any or not; is all meant instead of 'al'"),
        ({"price": {"lte": 30}}, """has no field, all, any or not; is {"field": 'price', …} meant"""),
        ({"field": "prise", "lte": 30}, r"filter.field: 'prise' cannot be filtered on: is price meant\? There are brand"),
        ({"field": 3, "lte": 30}, "filter.field: is a number: send the name of an attribute"),
        ({"field": "price"}, "asks nothing of price, a number: add eq, ne, lt, lte, gt, gte, in and exists"),
        ({"field": "price", "less": 3}, "there is no operator 'less': .*price is a number and has eq, ne"),
        ({"field": "brand", "lte": "a"}, "filter: brand is a string, which has no lte: it has eq, ne, in and exists"),
        ({"field": "tags", "eq": "a"}, "tags is a list of strings, which has no eq: it has contains, contains_any"),
        ({"field": "price", "lte": "30"}, "filter.lte: is a string, and price is a number"),
        ({"field": "price", "lte": True}, "filter.lte: is a boolean, and price is a number"),
        ({"field": "price", "lte": None}, "filter.lte: is null, and price is a number"),
        ({"field": "price", "lte": math.nan}, "filter.lte: is nan, and price is a number"),
        ({"field": "price", "lte": 2**53 + 1}, "filter.lte: is a whole number beyond 2.53"),
        ({"field": "price", "lte": 10**400}, "filter.lte: is a whole number beyond 2.53"),
        ({"field": "brand", "in": "Acme"}, "filter.in: is a string: send a list of one or more values"),
        ({"field": "brand", "in": []}, "filter.in: is an empty list: send a list of one or more values"),
        ({"field": "brand", "in": ["a", 3]}, r"filter.in\[1\]: is a number, and brand is a string"),
        ({"field": "tags", "contains": ["a"]}, "filter.contains: is a list, and tags is a list of strings, of which each is"),
        ({"field": "price", "exists": 1}, "filter.exists: is a number: send true or false"),
        ({"not": {"all": [{"field": "in_stock", "eq": "yes"}]}}, r"filter.not.all\[0\].eq: is a string, and in_stock is a bool"),
    ],
)  # fmt: skip
def test_wrong_filter_is_named_by_its_place(asked: Any, said: str) -> None:
    assert re.search(said, str(refused(asked))), str(refused(asked))


def test_pipeline_that_declares_no_attribute_says_so() -> None:
    with pytest.raises(FilterError, match=r"'price' cannot be filtered on: attributes.filterable declares no"):
        parsed_filter({"field": "price", "lte": 30}, {}, LIMITS)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"field": "price", "lt": 1, "lte": 1, "gt": 1, "gte": 1, "ne": 3}, "filter: is clause 5; the limit is 4"),
        ({"any": [{"field": "price", "lt": n} for n in range(4)]}, "filter.any[3]: is clause 5; the limit is 4"),
        (
            {"not": {"not": {"not": {"field": "price", "lt": 1}}}},
            "filter.not.not.not: is nested 4 deep; the limit is 3",
        ),
        ({"field": "price", "in": [1, 2, 3]}, "filter.in: has 3 values; the limit is 2"),
    ],
)
def test_filter_beyond_a_limit_is_refused_with_the_limit(asked: Any, said: str) -> None:
    error = refused(asked, SMALL)
    assert isinstance(error, FilterTooLargeError)
    assert str(error) == said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"field": "price", "lt": 3, "lt": 5}', "filter: the name 'lt' is there twice: send each once"),
        (b'{"field": "price", "lt": 3', "filter: cannot be read"),
        (b'{"not":' * 3_000, "filter: (is nested too deeply|cannot be read)"),
    ],
)
def test_filter_that_readers_would_disagree_about_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        read_filter(raw, TYPES, LIMITS, of_json=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["price", "brand", "a", "tags"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["all", "any", "not", "field", "lt", "in", "contains", "exists", "x"]), inner)
    ),
    max_leaves=8,
)


@given(JSON | FILTERS)
def test_anything_is_a_filter_or_the_one_error(asked: Any) -> None:
    try:
        found = parsed_filter(asked, TYPES, SMALL)
    except FilterError:
        return
    assert parsed_filter(to_json(found), TYPES, LIMITS) == found
