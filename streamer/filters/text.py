"""Clauses as a person writes them on a command line: ``price<=30``, ``brand=Acme|Bosch``, ``tags~red``.

A value is text up to the next ``|``, without the spaces around it; one that has ``|`` or spaces of its own is a JSON string in
double quotes. What comes out is a query's JSON, so that one parser (``streamer.filters.reading``) has the last word.

| written | means |
|---|---|
| ``price<=30``, ``<``, ``>=``, ``>`` | a number within the bound |
| ``brand=Acme``, ``brand=Acme|Bosch`` | is it, or one of them |
| ``brand!=Acme``, ``brand!=Acme|Bosch`` | has a value, and none of them |
| ``tags~red``, ``tags~red|blue`` | the list holds it, or one of them |
| ``tags!~red`` | there is a list, and it does not hold it |
| ``price=*``, ``price!=*`` | has any value; has none |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from models.attributes import LARGEST_WHOLE_NUMBER, AttributeType, described_type, is_name
from models.errors import SidstreamError

_CLAUSE: Final = re.compile(
    r"\s*(?P<field>[^\s<>=!~|\"]+)?\s*(?P<operator><=|>=|!=|!~|==|<|>|=|~)?(?P<rest>.*)", re.DOTALL
)
_COMPARISONS: Final = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_OF_TYPE: Final[Mapping[AttributeType, str]] = {
    "number": "< <= > >= = !=",
    "string": "= !=",
    "boolean": "= !=",
    "strings": "~ !~",
}
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_EXAMPLES: Final = "write it like price<=30, brand=Acme|Bosch, in_stock=true, tags~red or price=*"


class WhereError(SidstreamError):
    """A clause that cannot be understood; the message shows the clause, and marks the place below it."""

    def __init__(self, text: str, first: int, end: int, what: str) -> None:
        plain = "".join(character if character.isprintable() else "�" for character in text)
        mark = " " * first + "^" * max(1, end - first)
        super().__init__(f"{what}\n  {plain}\n  {mark}")


def parsed_where(clauses: Sequence[str], types: Mapping[str, AttributeType]) -> dict[str, Any]:
    """The JSON of a filter that means all of the clauses; ``types``: the declared ones.

    >>> parsed_where(["price<=30", "brand=Acme|Bosch"], {"price": "number", "brand": "string"})
    {'all': [{'field': 'price', 'lte': 30}, {'field': 'brand', 'in': ['Acme', 'Bosch']}]}

    Raises:
        WhereError: names what is wrong, and marks where.
    """
    parts = [_clause(text, types) for text in clauses]
    return parts[0] if len(parts) == 1 else {"all": parts}


def _clause(text: str, types: Mapping[str, AttributeType]) -> dict[str, Any]:
    found = _CLAUSE.fullmatch(text)
    assert found is not None  # every part of it is optional
    field, operator = found["field"], found["operator"]
    if field is None:
        raise WhereError(text, 0, len(text), f"a clause begins with the name of an attribute: {_EXAMPLES}")
    if field not in types:
        raise WhereError(text, *found.span("field"), _unknown_field(field, types))
    declared = types[field]
    operators = _OF_TYPE[declared]
    if operator is None:
        at = found.span("rest") if found["rest"].strip() else found.span("field")
        raise WhereError(
            text,
            *at,
            f"{field} is {described_type(declared)}, and after its name comes one of {operators}: {_EXAMPLES}",
        )
    operator = "=" if operator == "==" else operator
    if found["rest"].strip() == "*" and operator in ("=", "!="):
        return {"field": field, "exists": operator == "="}
    if operator not in operators.split():
        raise WhereError(
            text,
            *found.span("operator"),
            f"{field} is {described_type(declared)}, which has no {operator}: it has {operators}",
        )
    values = _values(text, found.start("rest"), field, declared, operator)
    if operator in _COMPARISONS:
        if len(values) > 1:
            raise WhereError(text, *found.span("rest"), f"{operator} takes one number")
        return {"field": field, _COMPARISONS[operator]: values[0]}
    if declared == "strings":
        name, several = "contains", "contains_any"
    else:
        name, several = "eq", "in"
    clause = {"field": field, name: values[0]} if len(values) == 1 else {"field": field, several: values}
    return {"all": [{"field": field, "exists": True}, {"not": clause}]} if operator.startswith("!") else clause


def _values(text: str, start: int, field: str, declared: AttributeType, operator: str) -> list[Any]:
    values: list[Any] = []
    # Only a string may be empty.
    empty = f'; an empty one is {field}{operator}""' if declared in ("string", "strings") else ""
    at = start
    while True:
        first = at + len(text[at:]) - len(text[at:].lstrip())
        if text[first : first + 1] == '"':
            value, at = _quoted(text, first)
        else:
            bar = text.find("|", at)
            at = len(text) if bar < 0 else bar
            value = text[first:at].rstrip() if first < at else ""
            if not value:
                raise WhereError(text, at, at + 1, f"a value is missing here{empty}")
        values.append(_typed(text, first, at, field, declared, value))
        rest = text[at:].lstrip()
        if not rest:
            return values
        if rest[0] != "|":
            raise WhereError(text, len(text) - len(rest), len(text), "after a value in quotes comes | or the end")
        at = len(text) - len(rest) + 1


def _quoted(text: str, first: int) -> tuple[str, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, first)
    except ValueError:
        raise WhereError(
            text, first, len(text), 'this string has no end: close it with " (inside of it, write \\")'
        ) from None
    return str(value), end


def _typed(
    text: str, first: int, end: int, field: str, declared: AttributeType, value: str
) -> str | int | float | bool:
    end = first + len(text[first:end].rstrip())
    if declared == "number":
        if not _NUMBER.fullmatch(value):
            hint = ": write a point, not a comma" if re.fullmatch(r"[+-]?\d+,\d+", value) else ""
            raise WhereError(text, first, end, f"{field} is a number, and {value[:40]!r} is none{hint}")
        number = int(value) if re.fullmatch(r"[+-]?\d{1,400}", value) else float(value)
        if isinstance(number, int) and abs(number) > LARGEST_WHOLE_NUMBER:
            raise WhereError(text, first, end, f"{field} is a number, and no attribute has a whole one beyond 2^53")
        if isinstance(number, float) and not math.isfinite(number):
            raise WhereError(text, first, end, f"{field} is a number, and no attribute has one so large")
        return number
    if declared == "boolean":
        if value not in ("true", "false"):
            raise WhereError(text, first, end, f"{field} is a boolean: write true or false")
        return value == "true"
    return value


def _unknown_field(field: str, types: Mapping[str, AttributeType]) -> str:
    if not types:
        return (
            f"{field[:40]!r} is not declared here: [attributes.filterable] in the settings of this machine declares no "
            "attribute. --filter-json is read by the retriever alone"
        )
    if not is_name(field):
        return f"{field[:40]!r} is no name of an attribute: {_EXAMPLES}"
    similar = get_close_matches(field, types, n=1)
    meant = f"is {similar[0]} meant? " if similar else ""
    known = ", ".join(f"{name} ({declared})" for name, declared in sorted(types.items()))
    return f"{field[:40]!r} cannot be filtered on: {meant}there are {known}"
