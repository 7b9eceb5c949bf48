"""Slates: the best items of which no more than so many share a SID, the beginning of one, or an attribute's value.

What must hold: greedy, best first: an item is left out exactly when one of its groups is full with better ones; the same
candidates always give the same slate. More candidates are read until it is full or there are no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from models.attributes import Attributes, AttributeType, AttributeValue
from models.sids.layout import Layout
from store.records.encoding import StoredItem
from streamer.filters.slate import PREFIX, SID, SlateRule

Candidate = TypeVar("Candidate")
Group = tuple[int, Hashable]
"""Number of a rule, and what the items of the group have in common."""


@dataclass(frozen=True)
class Slate(Generic[Candidate]):
    """``chosen``: best first; ``held_back``: numbers of items that are left out and better than the last chosen one, or of all
    that are left out of a slate that is not full; ``looked_at``: candidates.
    """

    chosen: list[Candidate]
    held_back: frozenset[int] = frozenset()
    looked_at: int = 0

    def note(self, limit: int) -> str:
        """What to tell a client whose slate is not full; else nothing."""
        if len(self.chosen) >= limit or not self.held_back:
            return ""
        return (
            f"the slate leaves {limit - len(self.chosen):,} of {limit:,} places empty: it holds back {len(self.held_back):,} of "
            f"the {self.looked_at:,} candidates that were looked at"
        )


class SlateGroups:
    """The groups of items under a query's rules."""

    def __init__(
        self,
        rules: Sequence[SlateRule],
        types: Mapping[str, AttributeType],
        layout: Layout,
        attributes: Callable[[npt.NDArray[np.uint32]], Sequence[Attributes | None]],
    ) -> None:
        """``attributes``: of item numbers (n,); asked where a rule needs them."""
        self.most = [rule.most for rule in rules]
        self._rules = rules
        self._types = types
        self._layout = layout
        self._attributes = attributes
        self._needs_attributes = any(rule.per not in (SID, PREFIX) for rule in rules)

    def of(self, items: Sequence[StoredItem]) -> list[list[Group]]:
        """The groups of each item. One without a value of the declared type is in no group of that rule; one with a list of
        strings is in the group of each.
        """
        attributes: Sequence[Attributes | None] = [None for _ in items]
        if self._needs_attributes and items:
            attributes = self._attributes(np.array([item.number for item in items], np.uint32))
        return [self._groups(item, own or {}) for item, own in zip(items, attributes, strict=True)]

    def _groups(self, item: StoredItem, attributes: Attributes) -> list[Group]:
        sid = self._layout.sid_of(item.codes)
        groups: list[Group] = []
        for number, rule in enumerate(self._rules):
            if rule.per == SID:
                groups.append((number, sid))
            elif rule.per == PREFIX:
                groups.append((number, sid[: rule.tokens or None]))
            else:
                groups += [(number, value) for value in _values(attributes.get(rule.per), self._types[rule.per])]
        return groups


def _values(value: AttributeValue | None, declared: AttributeType) -> list[Hashable]:
    match declared:
        case "number":
            return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
        case "string":
            return [value] if isinstance(value, str) else []
        case "boolean":
            return [value] if isinstance(value, bool) else []
        case "strings":
            return list(dict.fromkeys(value)) if isinstance(value, list) else []


def greedy(groups: Sequence[Sequence[Group]], most: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Places of at most ``limit`` candidates, given best first by their groups, and places of those that are left out before the
    last place that was looked at.
    """
    taken: Counter[Group] = Counter()
    chosen: list[int] = []
    left_out: list[int] = []
    for place, own in enumerate(groups):
        if len(chosen) == limit:
            break
        if all(taken[group] < most[group[0]] for group in own):
            taken.update(own)
            chosen.append(place)
        else:
            left_out.append(place)
    return chosen, left_out


def fill(
    limit: int,
    ranked: Callable[[int], Sequence[Candidate]],
    items_of: Callable[[Sequence[Candidate]], Sequence[StoredItem]],
    groups: SlateGroups,
    *,
    most_candidates: int,
) -> Slate[Candidate]:
    """The slate of ``limit`` items. ``ranked``: the best so many candidates, best first, fewer if there are no more; asked for
    twice as many until the slate is full, at most for ``most_candidates`` (or ``limit``, if that is more).
    """
    count, most_candidates = limit, max(limit, most_candidates)
    while True:
        candidates = ranked(count)
        items = items_of(candidates)
        chosen, left_out = greedy(groups.of(items), groups.most, limit)
        if len(chosen) == limit or len(candidates) < count or count == most_candidates:
            held_back = frozenset(items[place].number for place in left_out)
            return Slate([candidates[place] for place in chosen], held_back, len(candidates))
        count = min(2 * count, most_candidates)
