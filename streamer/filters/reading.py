"""From a query's JSON or MessagePack to a filter, or to the error that names the place in it and what would be right there.

Nothing is passed over: an unknown field, operator or name, a value of the wrong type, and a name that is there twice are errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from models.attributes import (
    LARGEST_WHOLE_NUMBER,
    AttributeType,
    RepeatedNameError,
    decoded_once,
    described_type,
)
from streamer.filters.grammar import Compare, Exists, Filter, HoldsAny, all_of, any_of, holds_any, none_of, one_of

_SAID: Final = 64
_COMBINING: Final = ("all", "any", "not")
_COMPARISONS: Final = ("lt", "lte", "gt", "gte")
OPERATORS: Final[Mapping[AttributeType, tuple[str, ...]]] = {
    "number": ("eq", "ne", *_COMPARISONS, "in", "exists"),
    "string": ("eq", "ne", "in", "exists"),
    "boolean": ("eq", "ne", "in", "exists"),
    "strings": ("contains", "contains_any", "contains_all", "exists"),
}
_ALL_OPERATORS: Final = tuple(dict.fromkeys(name for names in OPERATORS.values() for name in names))
_LISTS: Final = frozenset({"in", "contains_any", "contains_all"})


class FilterError(ValueError):
    """A filter that cannot be used; ``place`` names where in it, such as ``filter.all[1].lte``."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place}: {what}")
        self.place = place


class FilterTooLargeError(FilterError):
    """A filter beyond one of its limits."""


@dataclass(frozen=True, slots=True)
class FilterLimits:
    """``clauses``: operators, and alls, anys and nots; ``depth``: of one in another; ``entries``: values in a list."""

    clauses: int
    depth: int
    entries: int


def read_filter(
    raw: bytes | msgspec.Raw, types: Mapping[str, AttributeType], limits: FilterLimits, *, of_json: bool
) -> Filter:
    """The canonical filter in a query's ``filter``; ``types``: what may be filtered on.

    Raises:
        FilterError: names the place, and the known fields, types and operators.
    """
    try:
        found = decoded_once(raw, of_json=of_json)
    except RepeatedNameError as error:
        raise FilterError("filter", str(error)) from None
    except RecursionError:
        raise FilterTooLargeError("filter", f"is nested too deeply; the limit is {limits.depth}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise FilterError("filter", f"cannot be read: {error}") from None
    return parsed_filter(found, types, limits)


def parsed_filter(found: Any, types: Mapping[str, AttributeType], limits: FilterLimits) -> Filter:
    """As ``read_filter``, of Python objects."""
    return _Parser(types, limits).node(found, "filter", 1)


class _Parser:
    """One filter's parsing; counts its clauses."""

    def __init__(self, types: Mapping[str, AttributeType], limits: FilterLimits) -> None:
        self._types = types
        self._limits = limits
        self._clauses = 0

    def node(self, found: Any, place: str, depth: int) -> Filter:
        if depth > self._limits.depth:
            raise FilterTooLargeError(place, f"is nested {depth} deep; the limit is {self._limits.depth}")
        if not isinstance(found, dict):
            raise FilterError(
                place, f'is {_described(found)}: send {{"all": […]}}, {{"any": […]}}, {{"not": …}} or {{"field": …}}'
            )
        combining = [name for name in _COMBINING if name in found]
        if combining and len(found) > 1:
            others = ", ".join(_quoted(name) for name in found if name != combining[0])
            raise FilterError(place, f"has {others} beside {combining[0]!r}, which stands alone: put both into an all")
        if not combining:
            return self._leaf(found, place)
        self._count(place)
        name, inner = combining[0], found[combining[0]]
        if name == "not":
            return none_of(self.node(inner, f"{place}.not", depth + 1))
        if not isinstance(inner, list) or not inner:
            raise FilterError(f"{place}.{name}", f"is {_described(inner)}: send a list of one or more filters")
        parts = [self.node(part, f"{place}.{name}[{at}]", depth + 1) for at, part in enumerate(inner)]
        return all_of(parts) if name == "all" else any_of(parts)

    def _leaf(self, found: dict[Any, Any], place: str) -> Filter:
        if "field" not in found:
            first = next(iter(found), None)
            if first is None:
                raise FilterError(place, "is empty: leave the filter out if every item will do")
            meant = get_close_matches(str(first), (*_COMBINING, "field"), n=1)
            hint = f"; is {meant[0]} meant instead of {_quoted(first)}?" if meant else ""
            if first in self._types:
                hint = f'; is {{"field": {_quoted(first)}, …}} meant?'
            raise FilterError(place, f"has no field, all, any or not{hint}")
        field = found["field"]
        if not isinstance(field, str) or field not in self._types:
            raise FilterError(f"{place}.field", self._unknown_field(field))
        declared = self._types[field]
        clauses = []
        for operator, value in found.items():
            if operator == "field":
                continue
            at = f"{place}.{operator}" if isinstance(operator, str) else place
            if operator not in OPERATORS[declared]:
                raise FilterError(place, self._unknown_operator(field, declared, operator))
            self._count(place)
            clauses.append(self._clause(field, declared, operator, value, at))
        if not clauses:
            raise FilterError(
                place, f"asks nothing of {field}, {described_type(declared)}: add {_listed(OPERATORS[declared])}"
            )
        return all_of(clauses)

    def _clause(self, field: str, declared: AttributeType, operator: str, value: Any, place: str) -> Filter:
        if operator == "exists":
            if not isinstance(value, bool):
                raise FilterError(place, f"is {_described(value)}: send true or false")
            return Exists(field) if value else none_of(Exists(field))
        if operator not in _LISTS:
            one = self._value(field, declared, value, place)
            match operator:
                case "eq":
                    return one_of(field, [one])
                case "ne":
                    return all_of([Exists(field), none_of(one_of(field, [one]))])
                case "contains":
                    return HoldsAny(field, (str(one),))
                case "lt" | "lte" | "gt" | "gte":
                    return Compare(field, operator, float(one))
        if not isinstance(value, list) or not value:
            raise FilterError(place, f"is {_described(value)}: send a list of one or more values")
        if len(value) > self._limits.entries:
            raise FilterTooLargeError(place, f"has {len(value)} values; the limit is {self._limits.entries}")
        values = [self._value(field, declared, one, f"{place}[{at}]") for at, one in enumerate(value)]
        if operator == "in":
            return one_of(field, values)
        texts = [str(one) for one in values]
        return (
            holds_any(field, texts) if operator == "contains_any" else all_of(HoldsAny(field, (one,)) for one in texts)
        )

    def _value(self, field: str, declared: AttributeType, value: Any, place: str) -> str | float | bool:
        """A value that the field is compared with, as its type has it."""
        match declared, value:
            case ("boolean", bool()) | ("string" | "strings", str()):
                known: str | bool = value
                return known
            case "number", bool():
                pass
            case "number", int() if abs(value) <= LARGEST_WHOLE_NUMBER:
                return float(value)
            case "number", int():
                raise FilterError(place, "is a whole number beyond 2^53, which no attribute has")
            case "number", float() if math.isfinite(value):
                return float(value) + 0.0  # -0.0 is 0.0
        of = "a list of strings, of which each" if declared == "strings" else described_type(declared)
        also = " is a string" if declared == "strings" else ""
        raise FilterError(place, f"is {_described(value)}, and {field} is {of}{also}")

    def _count(self, place: str) -> None:
        self._clauses += 1
        if self._clauses > self._limits.clauses:
            raise FilterTooLargeError(place, f"is clause {self._clauses}; the limit is {self._limits.clauses}")

    def _unknown_field(self, field: Any) -> str:
        if not isinstance(field, str):
            return f"is {_described(field)}: send the name of an attribute"
        if not self._types:
            return f"{_quoted(field)} cannot be filtered on: attributes.filterable declares no attribute"
        similar = get_close_matches(field, self._types, n=1)
        meant = f"is {similar[0]} meant? " if similar else ""
        known = ", ".join(f"{name} ({declared})" for name, declared in sorted(self._types.items()))
        return f"{_quoted(field)} cannot be filtered on: {meant}There are {known}"

    def _unknown_operator(self, field: str, declared: AttributeType, operator: Any) -> str:
        known = _listed(OPERATORS[declared])
        if operator in _ALL_OPERATORS:
            return f"{field} is {described_type(declared)}, which has no {operator}: it has {known}"
        similar = get_close_matches(str(operator), _ALL_OPERATORS, n=1, cutoff=0.7)
        meant = f"is {similar[0]} meant? " if similar else ""
        return f"there is no operator {_quoted(operator)}: {meant}{field} is {described_type(declared)} and has {known}"


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _quoted(name: Any) -> str:
    return ascii(name[:_SAID]) if isinstance(name, str) else f"{name!r:.64}"


def _described(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case float() if not math.isfinite(value):
            return f"{value}"
        case int() | float():
            return "a number"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case _:
            return f"a value of the type {type(value).__name__}"
