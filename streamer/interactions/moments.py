"""A moment as a person writes it: ISO 8601, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from models.errors import SidstreamError

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_AGO: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])")


class MomentError(SidstreamError):
    """A text is no moment."""


def parsed_moment(text: str, now: int, option: str = "--since") -> int:
    """Milliseconds since the epoch: of a date or time (UTC where it says no zone), or of so long before ``now``.

    >>> parsed_moment("1970-01-02", now=0), parsed_moment("24h", now=86_400_000), parsed_moment("1.5m", now=90_000)
    (86400000, 0, 0)

    Raises ``MomentError`` for anything else, and for a moment that is not before ``now``.
    """
    written = text.strip()
    ago = _AGO.fullmatch(written.lower())
    if ago is not None:
        return max(0, now - round(float(ago[1]) * _UNITS[ago[2]]))
    try:
        if written.isdigit():
            raise ValueError
        found = datetime.fromisoformat(written.upper() if written[-1:] == "z" else written)
        at = round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise MomentError(
            f"{option} {written[:40]!r} is no time: give a date or time such as 2026-05-01 or 2026-05-01T12:00:00Z, or how "
            "long ago, such as 90m, 24h or 30d"
        ) from None
    if at > now:
        raise MomentError(f"{option} {written!r} is still to come: name a moment that has been")
    return at


def written_moment(at: int) -> str:
    """A moment in milliseconds as ISO 8601 in UTC, which ``parsed_moment`` reads as the same.

    >>> written_moment(86_400_001)
    '1970-01-02T00:00:00.001Z'
    """
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
