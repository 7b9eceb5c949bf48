"""Rules of a slate on a command line."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.filters.slate import SlateError, SlateRule, check_slate, parsed_at_most

TYPES: dict[str, Any] = {"brand": "string", "a.b": "number"}


def test_rules_are_what_is_written_and_can_be_used() -> None:
    rules = parsed_at_most(["sid:1", " prefix/2 : 3", "brand:2", "a.b:12"], TYPES)
    assert rules == (
        SlateRule(per="sid", most=1),
        SlateRule(per="prefix", most=3, tokens=2),
        SlateRule(per="brand", most=2),
        SlateRule(per="a.b", most=12),
    )
    check_slate(rules, TYPES, layers=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("brand", "write it like"),
        ("brand:", "write it like"),
        ("brand:two", "write it like"),
        ("brand:-1", "write it like"),
        ("brand:0", "one item or more"),
        ("brnd:1", "is brand meant"),
        ("prefix:2", "how many tokens"),
        ("prefix/x:2", "write it like"),
        ("sid/2:1", "goes with prefix alone"),
        (":1", "there are sid, prefix, a.b, brand"),
    ],
)
def test_rule_that_cannot_be_used_is_refused_with_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(SlateError, match=said):
        parsed_at_most([text], TYPES)
