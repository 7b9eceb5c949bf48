"""Options of `sidstream evaluate` beside others: each means something, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import SidstreamError
from retriever.evaluation.command_options import require_together, require_two_files


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"write_split", "judged"}, "leave --examples and --judged out"),
        ({"write_split", "at", "least_rating"}, "leave --least-rating and --at out"),
        ({"write_split", "json", "require"}, "leave --require and --json out"),
        ({"live", "bundle"}, "leave --index and --bundle out"),
        ({"weights", "index"}, "leave it out, or --live and --index"),
        ({"weights", "live"}, "leave it out, or --live and --index"),
        ({"seconds_a_query"}, "goes with --live"),
        ({"against", "live"}, "leave --live and --index out"),
    ],
)
def test_option_that_another_one_makes_meaningless_is_refused_by_name(given: set[str], message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        require_together(given.__contains__)


@pytest.mark.parametrize(
    "given",
    [
        set(),
        {"write_split", "interactions", "last_share", "embed"},
        {"live", "seconds_a_query", "seed", "json"},
        {"index", "bundle", "cases"},
        {"weights", "against", "bundle"},
    ],
)
def test_options_that_mean_something_together_pass(given: set[str]) -> None:
    require_together(given.__contains__)


def test_json_and_page_in_one_file_are_refused_and_in_two_pass(tmp_path: Path) -> None:
    require_two_files(tmp_path / "one", tmp_path / "other")
    require_two_files(None, tmp_path / "other")
    with pytest.raises(SidstreamError, match="give two files"):
        require_two_files(tmp_path / "one", tmp_path / "within" / ".." / "one")
