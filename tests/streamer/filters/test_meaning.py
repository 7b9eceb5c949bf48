"""What a filter means: the parsed one agrees with its JSON, for any attributes, missing and wrongly typed ones among them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from models.attributes import Attributes
from streamer.filters.meaning import matches
from streamer.filters.reading import parsed_filter
from support.filter_cases import ATTRIBUTES, FILTERS, LIMITS, TYPES, means


@given(FILTERS, ATTRIBUTES)
def test_parsed_filter_means_what_its_json_says(asked: dict[str, Any], attributes: Attributes) -> None:
    assert matches(parsed_filter(asked, TYPES, LIMITS), attributes, TYPES) == means(asked, attributes)


@pytest.mark.parametrize(
    ("asked", "attributes", "expected"),
    [
        ({"field": "price", "lte": 30}, {"price": 30}, True),
        ({"field": "price", "lt": 30}, {"price": 30}, False),
        ({"field": "price", "gte": 10, "lt": 30}, {"price": 10.5}, True),
        ({"field": "price", "gte": 10, "lt": 30}, {"price": 31}, False),
        ({"field": "price", "lte": 30}, {}, False),
        ({"not": {"field": "price", "lte": 30}}, {}, True),
        ({"field": "price", "ne": 30}, {}, False),
        ({"field": "price", "ne": 30}, {"price": 31}, True),
        ({"field": "price", "lte": 30}, {"price": "9"}, False),
        ({"field": "price", "exists": True}, {"price": "9"}, False),
        ({"field": "price", "exists": False}, {}, True),
        ({"field": "brand", "in": ["Acme", "Bosch"]}, {"brand": "Bosch"}, True),
        ({"field": "brand", "eq": "acme"}, {"brand": "Acme"}, False),
        ({"field": "in_stock", "eq": True}, {"in_stock": True}, True),
        ({"field": "in_stock", "eq": True}, {"in_stock": 1}, False),
        ({"field": "tags", "contains": "red"}, {"tags": ["blue", "red"]}, True),
        ({"field": "tags", "contains_any": ["red", "green"]}, {"tags": ["blue", "red"]}, True),
        ({"field": "tags", "contains_all": ["red", "green"]}, {"tags": ["blue", "red"]}, False),
        ({"field": "tags", "contains_all": ["red", "blue"]}, {"tags": ["blue", "red"]}, True),
        ({"field": "tags", "exists": True}, {"tags": []}, True),
    ],
)
def test_each_operator_over_values_that_are_there_and_missing(
    asked: dict[str, Any], attributes: Attributes, expected: bool
) -> None:
    assert matches(parsed_filter(asked, TYPES, LIMITS), attributes, TYPES) is expected
