"""What follows a training: examples held back for it, and whoever has asked to be told when the bundle has its new model.

What must hold: who chooses by these examples has them alone; the training has not seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from models.dense.fit_mixture import HeldOut
from models.examples.folding import folded
from models.examples.records import TrainingData

if TYPE_CHECKING:
    from models.bundles.bundle import Bundle
    from models.catalogue import Catalogue
    from models.towers.text_encoder import Towers

CHOOSING_SHARE: Final = 0.02  # of the users, or examples without one
_WHOLE: Final = 1_000_000  # items of a history: it is joined as long as it is
FEWEST_TARGETS: Final = 5_000  # below, a share so small has too few cases to choose by, and training needs all


@dataclass(frozen=True)
class Trained:
    """``bundle`` with its new model; ``codes``: (N, L) of the items of ``shop``; ``histories``: rows, those trained on;
    ``held_out``: what was not, to choose by.
    """

    bundle: Bundle
    shop: Catalogue
    codes: npt.NDArray[np.uint16]
    histories: Sequence[Sequence[int]]
    held_out: Sequence[HeldOut]
    towers: Towers | None
    seed: int
    console: Console


# ``sidstream`` registers what needs the search here: it lies above this part of the house.
AFTER_TRAINING: Final[list[Callable[[Trained], None]]] = []


def hold_back_to_choose(
    data: TrainingData, validation: TrainingData | None, *, seed: int
) -> tuple[TrainingData, TrainingData]:
    """What is trained on, and what the mixture is chosen by: the validation data if there are any, else a small share."""
    if validation is not None:
        return data, validation
    if not AFTER_TRAINING or data.targets < FEWEST_TARGETS:
        return data, TrainingData()
    return data.split(CHOOSING_SHARE, seed)


def rows_of_histories(data: TrainingData, item_ids: Sequence[str]) -> list[list[int]]:
    """The histories of training data as rows, each once, also where examples tell it again and again as it grows; items that the
    catalogue does not have are left out.
    """
    rows = {item: row for row, item in enumerate(item_ids)}
    told = tuple(msgspec.structs.replace(example, embedding=None) for example in data.examples if example.history)
    once = folded(TrainingData(histories=data.histories, examples=told), _WHOLE)
    whole = [list(history.items) for history in once.histories]
    whole += [[*example.history, example.item] for example in once.examples]
    return [[rows[item] for item in items if item in rows] for items in whole]


def cases_of(data: TrainingData, item_ids: Sequence[str]) -> list[HeldOut]:
    """A case an example, and one a history: its last item that is to be generated."""
    rows = {item: row for row, item in enumerate(item_ids)}
    cases = []
    for history in data.histories:
        places = [place for place, query in enumerate(history.asked()) if query is not None]
        if places and history.items[places[-1]] in rows:
            before = tuple(rows[item] for item in history.items[: places[-1]] if item in rows)
            text = history.asked()[places[-1]] or ""
            cases.append(HeldOut(rows[history.items[places[-1]]], text=text, history=before))
    for example in data.examples:
        if example.item in rows:
            before = tuple(rows[item] for item in example.history if item in rows)
            cases.append(HeldOut(rows[example.item], example.query, before, example.embedding))
    return cases
