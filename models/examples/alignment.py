"""Alignment tasks: what a model can learn of items from the catalogue alone, so that SIDs and words mean the same to it. An
item's title → its SID, its SID → its title, what else is said of it → its SID (LC-Rec: Zheng et al. 2024).

What must hold: a task stands for an item that has the text for it, and for no other; a task that no item has text for is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, get_args

from models.catalogue import CatalogueItem
from models.errors import SidstreamError
from models.language.instruction import AlignmentTask

TASKS: Final[tuple[AlignmentTask, ...]] = get_args(AlignmentTask)
DEFAULT_SHARE: Final = 0.2


@dataclass(frozen=True)
class AlignmentSettings:
    """``tasks``: which; ``share``: of all that is learnt in a pass, in equal parts where every item has text for each."""

    tasks: tuple[AlignmentTask, ...]
    share: float = DEFAULT_SHARE

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or not set(self.tasks) <= set(TASKS):
            raise SidstreamError(
                f"the alignment tasks are {', '.join(self.tasks) or 'none'}: choose of {', '.join(TASKS)}, each once"
            )
        if not 0 < self.share < 1:
            raise SidstreamError(f"the share of alignment tasks must be above 0 and below 1, not {self.share:g}")

    def targets(self, beside: int) -> int:
        """How many tasks a pass has beside so many other targets."""
        return max(1, round(beside * self.share / (1 - self.share)))

    def described(self) -> str:
        """In words."""
        return f"{', '.join(self.tasks)}: {self.share:g} of a pass"

    def to_dict(self) -> dict[str, Any]:
        """For manifests."""
        return {"tasks": list(self.tasks), "share": self.share}


class AlignmentExample(NamedTuple):
    """``text``: what leads to the ``item`` (its id), or what it leads to."""

    task: AlignmentTask
    item: str
    text: str


def alignment_examples(items: Sequence[CatalogueItem], tasks: Sequence[AlignmentTask]) -> list[AlignmentExample]:
    """An example for each task and each item that has text for it.

    Raises ``SidstreamError`` for a task that no item has text for.
    """
    found: list[AlignmentExample] = []
    for task in tasks:
        of_attributes = task == "attributes-to-sid"
        texts = [attributes_text(item) if of_attributes else item.title.strip() for item in items]
        examples = [AlignmentExample(task, item.id, text) for item, text in zip(items, texts, strict=True) if text]
        if not examples:
            lacking = "brand, type or attributes" if of_attributes else "a title"
            raise SidstreamError(
                f"no item of the catalogue has {lacking}, which the task {task} is made from: give the items theirs, or leave "
                "the task out"
            )
        found += examples
    return found


def attributes_text(item: CatalogueItem) -> str:
    """What is said of an item beside its title and description.

    >>> attributes_text(CatalogueItem(id="1", title="Alta kettle", brand="Alta", type="kettle", attributes={"litres": 1.7}))
    'brand: Alta, type: kettle, litres: 1.7'
    """
    said = {"brand": item.brand.strip(), "type": item.type.strip(), **item.attributes}
    return ", ".join(f"{name}: {_written(value)}" for name, value in said.items() if value not in ("", []))


def _written(value: str | bool | float | list[str]) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return " and ".join(value)
        case _:
            return str(value)
