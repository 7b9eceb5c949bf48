"""Moments as people write them."""

from __future__ import annotations

import pytest

from streamer.interactions.moments import MomentError, parsed_moment, written_moment

NOW = 1_767_323_045_000  # 2026-01-02T03:04:05Z


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", NOW),
        ("2026-01-02t03:04:05z", NOW),
        ("2026-01-02 04:04:05+01:00", NOW),
        ("2026-01-02T03:04:05", NOW),
        ("2026-01-02", NOW - 11_045_000),
        ("45s", NOW - 45_000),
        ("90m", NOW - 5_400_000),
        ("24h", NOW - 86_400_000),
        ("1.5 d", NOW - 129_600_000),
        ("2W", NOW - 1_209_600_000),
        ("99999d", 0),
    ],
)
def test_moment_is_iso_or_how_long_ago(text: str, moment: int) -> None:
    assert parsed_moment(text, NOW) == moment
    assert parsed_moment(written_moment(moment), NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "yesterday", "24", "1767323045000", "20260101", "-3h", "h", "2026-13-01", "3 months"]
)
def test_what_is_no_moment_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(MomentError, match=r"--until.*is no time: give .* 24h or 30d"):
        parsed_moment(text, NOW, "--until")


def test_moment_to_come_is_refused() -> None:
    with pytest.raises(MomentError, match="still to come"):
        parsed_moment("2026-01-02T03:04:06Z", NOW)
