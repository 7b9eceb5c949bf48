"""Sets of partition numbers as people write them: ``0-3,6``.

What must hold: one set has one text, so that settings, index, records and group names can be compared as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Final

EVERY: Final = ""
"""Text of the set of all partitions, however many a topic has."""
_RANGE: Final = re.compile(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", re.ASCII)
_MOST: Final = 100_000  # partitions of a topic: far more than a cluster bears


@lru_cache(maxsize=1_024)
def numbers_of(text: str) -> frozenset[int]:
    """The partitions that a text names; empty for ``EVERY``.

    Raises ``ValueError`` for a text that is none.

    >>> sorted(numbers_of("0-2,6"))
    [0, 1, 2, 6]
    """
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ValueError(f"{part.strip()!r} is no partition and no range of them: write partitions as 0-3,6")
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if not first <= last < _MOST:
            raise ValueError(
                f"{part.strip()!r} is no range of partitions: its ends must rise, and stay below {_MOST:,}"
            )
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def text_of(numbers: Iterable[int]) -> str:
    """The one text of a set of partitions.

    >>> text_of([3, 1, 2, 6])
    '1-3,6'
    """
    rising = sorted(set(numbers))
    if not rising:
        return EVERY
    ends = [place for place, (one, following) in enumerate(pairwise(rising), start=1) if following != one + 1]
    runs = [rising[first:end] for first, end in pairwise([0, *ends, len(rising)])]
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def holds(text: str, partition: int) -> bool:
    """Whether a partition is one of those that a text names."""
    return text == EVERY or partition in numbers_of(text)


def overlap(one: str, other: str) -> bool:
    """Whether two sets share a partition."""
    return EVERY in (one, other) or not numbers_of(one).isdisjoint(numbers_of(other))
