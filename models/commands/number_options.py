"""Numbers that commands take: options of several commands with their bounds, and no option takes infinity or NaN."""

from __future__ import annotations

import math
from typing import Annotated, Final

import typer

LARGEST_SEED: Final = 2**32 - 1  # of NumPy's older generators; the others take it, too
MOST_THREADS: Final = 1_024  # far more, and the system starts no more threads: PyTorch ends the process


def finite(value: float | None) -> float | None:
    """The callback of every option that is a float: an open range lets infinity pass, and without one NaN passes, too.

    Raises ``typer.BadParameter``, which names the option.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number: give one such as 0.5")
    return value


SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of the random numbers: the same seed draws the same.")
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, max=MOST_THREADS, help="CPU threads; 0: as many as cores.")
]
