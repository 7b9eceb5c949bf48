"""Options of ``sidstream evaluate`` that mean nothing beside another one: refused, none passed over in silence.

What the cases are of is in ``retriever.evaluation.sources``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from models.errors import SidstreamError

# By their parameters' names. A split is of what the catalogue or --interactions have, and nothing of it is measured.
_OF_OTHER_CASES: Final = ("examples", "judged")
_OF_MEASURING: Final = (
    "validation", "training", "least_rating", "at", "by", "head_share", "new_items", "cases", "bundle", "index", "weights",
    "live", "seconds_a_query", "text_alone", "against", "require", "resamples", "seed", "json", "page",
)  # fmt: skip


def require_together(given: Callable[[str], bool]) -> None:
    """Return if the options that were ``given``, by their parameters' names, all mean something together.

    Raises:
        SidstreamError: names those that do not, and what to do.
    """
    if given("write_split"):
        if any(map(given, _OF_OTHER_CASES)):
            raise SidstreamError("--write-split splits sequences or interactions: leave --examples and --judged out")
        if beside := [_option(name) for name in _OF_MEASURING if given(name)]:
            raise SidstreamError(
                f"--write-split writes the parts and measures nothing: leave {' and '.join(beside)} out, and give what you need "
                "of it to the evaluation of the parts"
            )
    if given("live") and (given("index") or given("bundle")):
        raise SidstreamError(
            "--live asks the running retrievers, which have an index and a bundle: leave --index and --bundle out"
        )
    if given("weights") and (given("live") or given("index")):
        raise SidstreamError(
            "--weights is for an index that is made of the catalogue: leave it out, or --live and --index"
        )
    if given("seconds_a_query") and not given("live"):
        raise SidstreamError("--seconds-a-query goes with --live: in this process every query is answered")
    if given("against") and (given("live") or given("index")):
        raise SidstreamError("--against asks both bundles over an index of the catalogue: leave --live and --index out")


def require_two_files(json: Path | None, page: Path | None) -> None:
    """Return unless ``--json`` and ``--page`` name one file, of which the page alone would be left. Raises ``SidstreamError``."""
    if json is not None and page is not None and json.resolve() == page.resolve():
        raise SidstreamError(f"--json and --page both name {json}, and one would replace the other: give two files")


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"
