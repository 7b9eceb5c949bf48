"""Goes through a database a few entries at a time, and round again: for what need not be looked at all at once."""

from __future__ import annotations

from itertools import islice
from typing import Any


class Sweep:
    """Where a round through one database stands; it begins anew with the process."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._last = b""  # key of the entry that was looked at last

    def next(self, transaction: Any, most: int) -> list[tuple[bytes, bytes]]:
        """The next entries (key, value), at most ``most``; fewer at the end of a round."""
        cursor = transaction.cursor(self._database)
        found = cursor.set_range(self._last) if self._last else cursor.first()
        entries = list(islice(cursor.iternext(), most)) if found else []
        self._last = entries[-1][0] if len(entries) == most else b""
        return entries
