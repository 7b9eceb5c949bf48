"""Options that name one of a few things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from models.errors import SidstreamError

Choice = TypeVar("Choice", bound=str)


def one_of(option: str, name: str, known: Sequence[Choice]) -> Choice:
    """The choice of that name. Raises ``SidstreamError`` that names the option and what there is."""
    for choice in known:
        if name == choice:
            return choice
    raise SidstreamError(f"{option} {name!r} is unknown: choose one of {', '.join(known)}")
