"""Attributes and filters for property tests, and what a filter's JSON means, read straight off the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hypothesis import strategies as st

from models.attributes import AttributeType, AttributeValue, type_of
from streamer.filters.reading import FilterLimits

TYPES: Final[dict[str, AttributeType]] = {
    "price": "number",
    "size": "number",
    "brand": "string",
    "in_stock": "boolean",
    "tags": "strings",
    "colours": "strings",
}
LIMITS: Final = FilterLimits(clauses=1_000, depth=20, entries=100)
# Few values, so that clauses agree, contradict each other and meet the items.
NUMBERS: Final = st.sampled_from([-1, 0, 0.0, -0.0, 0.5, 1, 1.0, 2, 30, 1e300])
WORDS: Final = st.sampled_from(["", "a", "b", "Acme", "é"])
_VALUES: Final[dict[str, Any]] = {
    "number": NUMBERS,
    "string": WORDS,
    "boolean": st.booleans(),
    "strings": st.lists(WORDS, max_size=3),
}


def _attributes() -> st.SearchStrategy[dict[str, AttributeValue]]:
    # Now and then a value of another type than the declared one: stored before it was declared.
    any_value = st.one_of(*_VALUES.values())
    fields = {name: st.one_of(*[_VALUES[declared]] * 9, any_value) for name, declared in TYPES.items()}
    fields["undeclared"] = any_value
    return st.fixed_dictionaries({}, optional=fields)


ATTRIBUTES: Final = _attributes()


def _leaf(field: str) -> st.SearchStrategy[dict[str, Any]]:
    declared = TYPES[field]
    value = WORDS if declared == "strings" else _VALUES[declared]
    some = st.lists(value, min_size=1, max_size=3)
    operators: dict[str, Any] = {"exists": st.booleans()}
    if declared == "strings":
        operators |= {"contains": value, "contains_any": some, "contains_all": some}
    else:
        operators |= {"eq": value, "ne": value, "in": some}
    if declared == "number":
        operators |= dict.fromkeys(("lt", "lte", "gt", "gte"), value)
    clauses = st.fixed_dictionaries({}, optional=operators).filter(bool)
    return clauses.map(lambda clause: {"field": field, **clause})


LEAVES: Final = st.sampled_from(sorted(TYPES)).flatmap(_leaf)
FILTERS: Final = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=6,
)


def means(asked: Mapping[str, Any], attributes: Mapping[str, AttributeValue]) -> bool:
    """Whether an item with these attributes fulfils the filter, by its JSON alone."""
    if "all" in asked:
        return all(means(part, attributes) for part in asked["all"])
    if "any" in asked:
        return any(means(part, attributes) for part in asked["any"])
    if "not" in asked:
        return not means(asked["not"], attributes)
    value: Any = attributes.get(asked["field"])
    there = value is not None and type_of(value) == TYPES[asked["field"]]
    clauses = {name: wanted for name, wanted in asked.items() if name != "field"}
    return all(
        _holds(name, value, wanted) if there else (name, wanted) == ("exists", False)
        for name, wanted in clauses.items()
    )


def _holds(operator: str, value: Any, wanted: Any) -> bool:
    found: bool = {
        "exists": lambda: wanted,
        "eq": lambda: value == wanted,
        "ne": lambda: value != wanted,
        "in": lambda: value in wanted,
        "lt": lambda: value < wanted,
        "lte": lambda: value <= wanted,
        "gt": lambda: value > wanted,
        "gte": lambda: value >= wanted,
        "contains": lambda: wanted in value,
        "contains_any": lambda: any(one in value for one in wanted),
        "contains_all": lambda: all(one in value for one in wanted),
    }[operator]()
    return found
