"""The slate that a query asks for: at most so many items of one SID, of one beginning of a SID, or of one value of an attribute.

What must hold: nothing is passed over; a rule that cannot be used is an error that names its place and what would be right there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from models.attributes import AttributeType
from models.errors import SidstreamError

SID: Final = "sid"
PREFIX: Final = "prefix"
_EXAMPLES: Final = "write it like sid:1, prefix/2:3 (of the first two tokens of SIDs, three items) or brand:2"


class SlateRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``most`` items of an answer have the same ``per``: ``sid``, ``prefix`` (the first ``tokens`` tokens of the SID), or
    the value of a declared attribute of this name.
    """

    per: str
    most: int
    tokens: int | UnsetType = UNSET


class SlateError(SidstreamError):
    """A slate that cannot be used; ``place`` names where in it, such as ``slate[1].per``."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place}: {what}")
        self.place = place


def check_slate(rules: Sequence[SlateRule], types: Mapping[str, AttributeType], *, layers: int) -> None:
    """Raises ``SlateError`` for rules that cannot be used; ``types``: the declared attributes; ``layers``: L of the codebook."""
    for number, rule in enumerate(rules):
        place = f"slate[{number}]"
        if rule.per not in (SID, PREFIX) and rule.per not in types:
            raise SlateError(f"{place}.per", _unknown(rule.per, types))
        if rule.most < 1:
            raise SlateError(
                f"{place}.most", f"is {rule.most}, and a slate has one item or more of each: give 1 or more"
            )
        if rule.per != PREFIX:
            if rule.tokens is not UNSET:
                raise SlateError(
                    f"{place}.tokens", f"goes with per {PREFIX!r}, and this is per {rule.per!r}: leave it out"
                )
        elif rule.tokens is UNSET:
            raise SlateError(
                place, f"per {PREFIX!r} needs tokens: say how many of a SID's first tokens count, 1 to {layers}"
            )
        elif not 1 <= rule.tokens <= layers:
            raise SlateError(
                f"{place}.tokens", f"is {rule.tokens}, and SIDs have {layers} tokens at the most: give 1 to {layers}"
            )


def parsed_at_most(texts: Sequence[str], types: Mapping[str, AttributeType]) -> tuple[SlateRule, ...]:
    """The rules that are written as ``sid:1``, ``prefix/2:3`` or ``brand:2``.

    >>> parsed_at_most(["brand:2"], {"brand": "string"})[0].most
    2

    Raises:
        SlateError: names the text and what is wrong with it.
    """
    rules = []
    for text in texts:
        per, colon, most = text.rpartition(":")
        per, slash, tokens = per.strip().partition("/")
        numbers = [most.strip(), *([tokens.strip()] if slash else [])]
        if not colon or not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
            raise SlateError(repr(text), _EXAMPLES)
        if per == PREFIX and not slash:
            raise SlateError(repr(text), f"how many tokens of a SID are the prefix? {_EXAMPLES}")
        if per not in (SID, PREFIX) and per not in types:
            raise SlateError(repr(text), _unknown(per, types))
        if slash and per != PREFIX:
            raise SlateError(repr(text), f"a number of tokens goes with prefix alone: {_EXAMPLES}")
        if int(most) < 1:
            raise SlateError(repr(text), "a slate has one item or more of each: give 1 or more")
        rules.append(SlateRule(per=per, most=int(most), tokens=int(tokens) if slash else UNSET))
    return tuple(rules)


def _unknown(per: str, types: Mapping[str, AttributeType]) -> str:
    known = [SID, PREFIX, *sorted(types)]
    near = get_close_matches(per, known, n=1)
    meant = f" is {near[0]} meant?" if near else ""
    return f"{per[:64]!r} is none that items can be counted by:{meant} there are {', '.join(known)}"
