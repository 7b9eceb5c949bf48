"""Clauses of a command line: what is written means what its JSON says, and an error marks its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.filters.reading import parsed_filter
from streamer.filters.text import WhereError, parsed_where
from support.filter_cases import LIMITS, TYPES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price<=30", {"field": "price", "lte": 30}),
        ("price < 30.5", {"field": "price", "lt": 30.5}),
        (" price >= -.5 ", {"field": "price", "gte": -0.5}),
        ("price>1e3", {"field": "price", "gt": 1000.0}),
        ("price=1|2", {"field": "price", "in": [1, 2]}),
        ("brand=Acme", {"field": "brand", "eq": "Acme"}),
        ("brand==Acme", {"field": "brand", "eq": "Acme"}),
        ("brand=Acme & Sons|Bosch", {"field": "brand", "in": ["Acme & Sons", "Bosch"]}),
        ('brand="a|b" | " c "', {"field": "brand", "in": ["a|b", " c "]}),
        ('brand=""', {"field": "brand", "eq": ""}),
        ('brand="*"', {"field": "brand", "eq": "*"}),
        ("brand=a=b", {"field": "brand", "eq": "a=b"}),
        ("brand!=Acme", {"all": [{"field": "brand", "exists": True}, {"not": {"field": "brand", "eq": "Acme"}}]}),
        ("in_stock=true", {"field": "in_stock", "eq": True}),
        ("tags~red", {"field": "tags", "contains": "red"}),
        ("tags~red|blue", {"field": "tags", "contains_any": ["red", "blue"]}),
        ("tags!~red", {"all": [{"field": "tags", "exists": True}, {"not": {"field": "tags", "contains": "red"}}]}),
        ("price=*", {"field": "price", "exists": True}),
        ('tags~""', {"field": "tags", "contains": ""}),
        ("price>=-9007199254740992", {"field": "price", "gte": -(2**53)}),
        ("tags != *", {"field": "tags", "exists": False}),
    ],
)
def test_written_clause_becomes_the_json_of_a_query(text: str, expected: dict[str, Any]) -> None:
    assert parsed_where([text], TYPES) == expected
    parsed_filter(expected, TYPES, LIMITS)


def test_several_clauses_are_all_meant() -> None:
    both = parsed_where(["price<=30", "in_stock=true"], TYPES)
    assert both == {"all": [{"field": "price", "lte": 30}, {"field": "in_stock", "eq": True}]}


@pytest.mark.parametrize(
    ("text", "what", "marked"),
    [
        ("price<=cheap", "price is a number, and 'cheap' is none", "cheap"),
        ("price<=3,50", "write a point, not a comma", "3,50"),
        ("price=nan", "price is a number, and 'nan' is none", "nan"),
        ("prise<=3", "is price meant? there are brand (string)", "prise"),
        ("brand<=3", "brand is a string, which has no <=: it has = !=", "<="),
        ("tags=red", "tags is a list of strings, which has no =: it has ~ !~", "="),
        ("price", "price is a number, and after its name comes one of < <= > >= = !=", "price"),
        ("price is 30", "after its name comes one of", "is 30"),
        ("in_stock=yes", "in_stock is a boolean: write true or false", "yes"),
        ("brand=a||b", 'a value is missing here; an empty one is brand=""', "|"),
        ("brand!=", 'a value is missing here; an empty one is brand!=""', ""),
        ("tags~", 'a value is missing here; an empty one is tags~""', ""),
        ("price<=1e400", "no attribute has one so large", "1e400"),
        ("price<=" + "9" * 500, "no attribute has one so large", "9" * 500),
        ("price>=9007199254740993", "no attribute has a whole one beyond 2^53", "9007199254740993"),
        ('brand="a', "this string has no end", '"a'),
        ('brand="a"b', "after a value in quotes comes | or the end", "b"),
        ("price<=1|2", "<= takes one number", "1|2"),
        ("<=30", "a clause begins with the name of an attribute", "<=30"),
    ],
)
def test_error_says_what_is_wrong_and_marks_it(text: str, what: str, marked: str) -> None:
    with pytest.raises(WhereError) as caught:
        parsed_where([text], TYPES)
    message, shown, marks = str(caught.value).split("\n")
    assert what in message
    first = marks.index("^")
    assert shown[first : first + marks.count("^")].startswith(marked) or marked.startswith(shown[first:])


def test_machine_that_declares_nothing_is_told_of_the_other_way() -> None:
    with pytest.raises(WhereError, match=r"declares no attribute. --filter-json is read by the retriever alone"):
        parsed_where(["price<=30"], {})


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.booleans())
def test_any_text_can_be_written_in_quotes(values: list[str], spaces: bool) -> None:
    text = "brand=" + (" | " if spaces else "|").join(json.dumps(value) for value in values)
    found = parsed_where([text], TYPES)
    assert found["in" if len(values) > 1 else "eq"] == (values if len(values) > 1 else values[0])


@given(st.text(st.sampled_from('price<=~!|"*&3. brandtags\\n\\\\'), max_size=20) | st.text(max_size=20))
def test_any_text_is_a_clause_or_the_one_error(text: str) -> None:
    try:
        found = parsed_where([text], TYPES)
    except WhereError:
        return
    parsed_filter(found, TYPES, LIMITS)
