"""Filters: typed clauses over attributes, in one canonical form whatever way they were written.

What must hold: filters that differ in the order of their parts, in repetitions, in nesting that says nothing, or in ``30`` and
``30.0`` are equal, and so are their keys; the canonical form, read again, is itself. A filter is immutable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from models.attributes import canonical_number

Comparison = Literal["lt", "lte", "gt", "gte"]


@dataclass(frozen=True, slots=True)
class Compare:
    """A number that is less than, at most, greater than or at least ``bound``."""

    field: str
    comparison: Comparison
    bound: float


@dataclass(frozen=True, slots=True)
class OneOf:
    """A string, number or boolean that is one of ``values``, which are of one type, rise, and are there once each."""

    field: str
    values: tuple[str | float | bool, ...]


@dataclass(frozen=True, slots=True)
class HoldsAny:
    """A list of strings that holds at least one of ``values``, which rise and are there once each."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """A field that has a value of its declared type."""

    field: str


@dataclass(frozen=True, slots=True)
class All:
    """Every part is fulfilled: two or more, in canonical order, none of them an ``All``. See ``all_of``."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part is fulfilled: two or more, in canonical order, none of them an ``AnyOf``. See ``any_of``."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part is not fulfilled; it is no ``Not``. See ``none_of``."""

    part: Filter


Filter = Compare | OneOf | HoldsAny | Exists | All | AnyOf | Not


def one_of(field: str, values: Iterable[str | float | bool]) -> OneOf:
    """``OneOf`` with its values in order, each once."""
    return OneOf(field, tuple(sorted(set(values))))


def holds_any(field: str, values: Iterable[str]) -> HoldsAny:
    """``HoldsAny`` with its values in order, each once."""
    return HoldsAny(field, tuple(sorted(set(values))))


def all_of(parts: Iterable[Filter]) -> Filter:
    """The canonical filter of parts that are all meant; at least one part."""
    flat = {part for one in parts for part in (one.parts if isinstance(one, All) else (one,))}
    return _in_order(All, flat)


def any_of(parts: Iterable[Filter]) -> Filter:
    """The canonical filter of parts of which one is enough; at least one part. Values of one field become one clause."""
    flat = {part for one in parts for part in (one.parts if isinstance(one, AnyOf) else (one,))}
    values: dict[tuple[type[OneOf] | type[HoldsAny], str], set[Any]] = {}
    for part in flat:
        if isinstance(part, OneOf | HoldsAny):
            values.setdefault((type(part), part.field), set()).update(part.values)
    merged: set[Filter] = {part for part in flat if not isinstance(part, OneOf | HoldsAny)}
    for (kind, field), some in values.items():
        merged.add(one_of(field, some) if kind is OneOf else holds_any(field, some))
    return _in_order(AnyOf, merged)


def none_of(part: Filter) -> Filter:
    """The canonical filter of what does not fulfil ``part``."""
    return part.part if isinstance(part, Not) else Not(part)


def _in_order(kind: type[All] | type[AnyOf], parts: Iterable[Filter]) -> Filter:
    ordered = sorted(parts, key=canonical_bytes)
    return ordered[0] if len(ordered) == 1 else kind(tuple(ordered))


def to_json(of: Filter) -> dict[str, Any]:
    """The filter as a query carries it.

    >>> to_json(all_of([Compare("price", "lte", 30.0), one_of("brand", ["Acme"])]))
    {'all': [{'field': 'brand', 'eq': 'Acme'}, {'field': 'price', 'lte': 30}]}
    """
    match of:
        case All(parts):
            return {"all": [to_json(part) for part in parts]}
        case AnyOf(parts):
            return {"any": [to_json(part) for part in parts]}
        case Not(part):
            return {"not": to_json(part)}
        case Compare(field, comparison, bound):
            return {"field": field, comparison: canonical_number(bound)}
        case OneOf(field, values):
            plain = [canonical_number(value) if isinstance(value, float) else value for value in values]
            return {"field": field, "eq": plain[0]} if len(plain) == 1 else {"field": field, "in": plain}
        case HoldsAny(field, values):
            if len(values) == 1:
                return {"field": field, "contains": values[0]}
            return {"field": field, "contains_any": list(values)}
        case Exists(field):
            return {"field": field, "exists": True}


def canonical_bytes(of: Filter) -> bytes:
    """The canonical form as compact JSON; equal for equal filters alone."""
    return msgspec.json.encode(to_json(of))


def fields_of(of: Filter) -> set[str]:
    """The fields that the filter asks for."""
    match of:
        case All(parts) | AnyOf(parts):
            return {field for part in parts for field in fields_of(part)}
        case Not(part):
            return fields_of(part)
        case _:
            return {of.field}
