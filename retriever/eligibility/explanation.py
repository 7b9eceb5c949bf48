"""Why nothing is eligible, in words that say which part of a query to loosen."""

from __future__ import annotations

from typing import Final

import numpy as np

from retriever.eligibility.columns import Columns
from streamer.filters.grammar import All, Filter, canonical_bytes

NOTHING_ELIGIBLE: Final = "NothingEligible"  # the kind of the answer's error
_CLAUSES_NAMED: Final = 8
_CLAUSE_CHARACTERS: Final = 120


def why_nothing(wanted: Filter | None, columns: Columns, *, live: int, excluded: int) -> str:
    """What to tell a client whose query lets none of the ``live`` items through; ``excluded``: those that it takes out beside the
    filter.
    """
    if wanted is None:
        return f"all {live:,} items of the index are excluded by the query: exclude fewer, or keep the history"
    left = columns.count(wanted)
    if left:
        return (
            f"the filter lets {left:,} of {live:,} items through, and the query excludes all of them ({excluded:,} are excluded "
            "with its history): exclude fewer, or loosen the filter"
        )
    parts = wanted.parts if isinstance(wanted, All) else (wanted,)
    named = [f"{_shortened(part)}: {columns.count(part):,}" for part in parts[:_CLAUSES_NAMED]]
    more = f", and {len(parts) - len(named)} more clauses" if len(parts) > len(named) else ""
    return f"the filter lets none of {live:,} items through. Each clause alone lets through {', '.join(named)}{more}"


def failed_clauses(wanted: Filter, columns: Columns, number: int) -> tuple[str, ...]:
    """The clauses of a filter that do not let an item through, as JSON; of an ``all`` its parts that fail, else the whole."""
    parts = wanted.parts if isinstance(wanted, All) else (wanted,)
    one = np.array([number], np.uint32)
    failed = [_shortened(part) for part in parts if not columns.lets_through(part, one)[0]]
    return tuple(failed[:_CLAUSES_NAMED])


def _shortened(part: Filter) -> str:
    text = canonical_bytes(part).decode()
    return text if len(text) <= _CLAUSE_CHARACTERS else text[: _CLAUSE_CHARACTERS - 1] + "…"
