"""Bounds that an evaluation has to keep, so that a pipeline can stop at them: ``recall@10>=.4``.

What must hold: a figure has one name, the same in the JSON, in a bound and on the page: ``METRIC@K`` of all cases,
``METRIC@K/GROUP`` of a group, ``METRIC@K-REFERENCE`` for the difference to a reference, each with ``:low`` or ``:high`` for the
end of its interval; ``coverage@K``, ``unanswered``. A bound on a name that is not there is an error before anything is asked.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from retriever.evaluation.cases import EvaluationError

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_BOUND: Final = re.compile(r"(?P<name>.+?)\s*(?P<operator>>=|<=|>|<)\s*(?P<value>[-+.\deE]+)\s*")


@dataclass(frozen=True)
class Bound:
    """A figure's name and what it must be."""

    text: str
    name: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Raises ``EvaluationError`` for anything that is no bound."""
        match = _BOUND.fullmatch(text.strip())
        try:
            assert match is not None
            value = float(match["value"])
            assert math.isfinite(value)
        except (AssertionError, ValueError):
            raise EvaluationError(
                f"--require {text!r} is no bound: give a figure, >=, <=, > or <, and a number, such as 'recall@10>=.4'"
            ) from None
        return cls(text, match["name"].strip(), match["operator"], value)

    def missed_by(self, figures: Mapping[str, float]) -> str | None:
        """Why the bound is missed, in a sentence; ``None`` if it is kept."""
        value = figures[self.name]
        if _OPERATORS[self.operator](value, self.value):
            return None
        if math.isnan(value):
            return f"{self.text}: there is no case to measure {self.name} on"
        side = "below" if value < self.value else "above"
        return f"{self.text}: {self.name} is {value:.4f}, {abs(value - self.value):.4f} {side}"


def require_known(bounds: Iterable[Bound], names: Sequence[str]) -> None:
    """Raises ``EvaluationError`` for the first bound on a figure that is not there, naming those that are."""
    known = set(names)
    for bound in bounds:
        if bound.name not in known:
            similar = get_close_matches(bound.name, names, n=1)
            plain = [name for name in names if ":" not in name]
            raise EvaluationError(
                f"--require {bound.text!r}: no figure is called {bound.name!r}"
                + (f"; is {similar[0]} meant?" if similar else "")
                + f" There are {', '.join(plain)}; each but coverage and unanswered also with :low and :high, the ends of its "
                "interval"
            )
