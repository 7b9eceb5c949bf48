"""What is wrong with a query, in words: the client says it before it sends, the retriever before it searches.

What must hold: a fault names the field, what its value looks like, and what to send instead.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Final

from streamer.events.records import Query

# Milliseconds since 1970 from March 1973 to the year 5138: seconds of our days lie below, microseconds above.
_EARLIEST_MS: Final = 100_000_000_000
_LATEST_MS: Final = 100_000_000_000_000
# Unit, how many of it are a millisecond, and the other way round.
_OTHER_UNITS: Final = (("seconds", 1, 1_000), ("microseconds", 1_000, 1), ("nanoseconds", 1_000_000, 1))
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(.*?)`", re.DOTALL)
_QUOTED: Final = 100  # characters of a sender's field name that a message repeats
# What others call these fields.
_SYNONYMS: Final = {
    "query": "text", "q": "text", "question": "text", "search": "text", "items": "history", "item_ids": "history",
    "sequence": "history", "user_id": "user", "k": "limit", "top_k": "limit", "n": "limit", "size": "limit",
    "count": "limit", "timestamp": "asked_at", "time": "asked_at", "timeout": "timeout_ms",
}  # fmt: skip


def time_fault(field: str, milliseconds: int) -> str | None:
    """What is wrong with a time, None if it may be milliseconds since 1970.

    >>> time_fault("asked_at", 1_793_852_231)
    'asked_at 1793852231 looks like seconds since 1970: send milliseconds, 1793852231000'
    """
    if _EARLIEST_MS <= milliseconds < _LATEST_MS:
        return None
    for unit, of_one, of_it in _OTHER_UNITS:
        if _EARLIEST_MS <= (meant := milliseconds * of_it // of_one) < _LATEST_MS:
            return f"{field} {milliseconds} looks like {unit} since 1970: send milliseconds, {meant}"
    return f"{field} {milliseconds} is not milliseconds since 1970: send the time in milliseconds, or leave it out"


def unknown_field_fault(message: str) -> str | None:
    """A sentence for msgspec's message on a field that queries do not have, with the known one that looks like it; None for
    another message.

    >>> unknown_field_fault("Object contains unknown field `txt`")
    "a query has no field 'txt'; is 'text' meant? Its fields: text, history, user, limit, asked_at, timeout_ms"
    """
    found = _UNKNOWN_FIELD.search(message)
    if found is None:
        return None
    name = found[1][:_QUOTED]
    known = Query.__struct_fields__
    plain = name.lower().replace("-", "_")
    nearest = _SYNONYMS.get(plain) or next(iter(get_close_matches(plain, known, n=1, cutoff=0.5)), None)
    meant = f"; is {nearest!r} meant?" if nearest else "."
    return f"a query has no field {name!r}{meant} Its fields: {', '.join(known)}"
