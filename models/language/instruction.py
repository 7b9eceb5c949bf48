"""The instruction: the words of a prompt around what it says, in one place, and a checkpoint's chat template around these words.

What must hold: a chat template is applied once, before training; a bundle keeps the words that came of it, part by part, so that
serving needs no template. Parts stand in the order user, history, query: prompts of one history begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from models.errors import SidstreamError

Slot = Literal["user", "history", "query"]
AlignmentTask = Literal["title-to-sid", "sid-to-title", "attributes-to-sid"]

SLOTS: Final[tuple[Slot, ...]] = ("user", "history", "query")
DEFAULT_INSTRUCTION: Final = (
    "[The customer {user}. ][Bought so far, oldest first: {history}. ][Searched for: {query}. ]Which item comes next?"
)
# A task's own words: with an instruction, and for bare prompts. Only what ends in a text needs words to be told from the rest.
TASK_INSTRUCTIONS: Final[Mapping[AlignmentTask, tuple[str, str]]] = {
    "title-to-sid": ("Which item is called {query}?", "{query}"),
    "sid-to-title": ("What is the item {history} called?", "{history} title:"),
    "attributes-to-sid": ("Which item has {query}?", "{query}"),
}
_OPTIONAL: Final = re.compile(r"\[([^\[\]]*)\]")
_SLOT: Final = re.compile(r"\{(\w*)\}")


class InstructionPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text ``before`` and ``after`` what a prompt says in ``slot``; all three are left out where it says nothing there. Without a
    slot ``before`` is always there.
    """

    before: str = ""
    slot: Slot | None = None
    after: str = ""


BARE: Final = tuple(InstructionPart(slot=slot) for slot in SLOTS)


def parse_instruction(text: str) -> tuple[InstructionPart, ...]:
    """The parts of an instruction: ``{user}``, ``{history}`` and ``{query}`` are its slots, and what stands with one of them
    between square brackets is left out with it.

    Raises ``SidstreamError`` for an unknown slot, one that is there twice or out of order, and brackets without one slot.

    >>> [part.slot for part in parse_instruction("[Bought: {history}. ]Find {query}:")]
    ['history', None, 'query', None]
    """
    parts: list[InstructionPart] = []
    end = 0
    for optional in _OPTIONAL.finditer(text):
        parts += _plain(text[end : optional.start()])
        pieces = _SLOT.split(optional[1])
        if len(pieces) != 3:
            raise SidstreamError(
                f"the instruction has [{optional[1]}]: what may be left out needs one slot, such as [Searched for: {{query}}. ]"
            )
        parts.append(InstructionPart(pieces[0], _slot(pieces[1]), pieces[2]))
        end = optional.end()
    parts += _plain(text[end:])
    found = [part.slot for part in parts if part.slot is not None]
    if found != [slot for slot in SLOTS if slot in found]:
        raise SidstreamError(
            f"the instruction has the slots {', '.join(f'{{{slot}}}' for slot in found)}: each may be there once, in the order "
            f"{', '.join(f'{{{slot}}}' for slot in SLOTS)}"
        )
    return tuple(parts)


def framed(parts: Sequence[InstructionPart], frame: tuple[str, str] | None) -> tuple[InstructionPart, ...]:
    """The parts between what a chat template writes before and after a user's message; as they are without a template."""
    if frame is None:
        return tuple(parts)
    before, after = (InstructionPart(text) for text in frame)
    return tuple(part for part in (before, *parts, after) if part != InstructionPart())


def task_instruction(
    task: AlignmentTask, *, bare: bool, frame: tuple[str, str] | None = None
) -> tuple[InstructionPart, ...]:
    """The words of an alignment task, as the prompts beside it are: ``bare``, or with words in a chat template's ``frame``."""
    with_words, without = TASK_INSTRUCTIONS[task]
    return parse_instruction(without) if bare else framed(parse_instruction(with_words), frame)


def words_of(parts: Sequence[InstructionPart]) -> str:
    """All that the parts write by themselves, for a tokenizer to learn."""
    return " ".join(text for part in parts for text in (part.before, part.after) if text)


def _plain(text: str) -> list[InstructionPart]:
    """Parts of text outside brackets: it stays where a slot in it is empty."""
    pieces = _SLOT.split(text)
    parts = [
        InstructionPart(piece) if place % 2 == 0 else InstructionPart(slot=_slot(piece))
        for place, piece in enumerate(pieces)
    ]
    return [part for part in parts if part != InstructionPart()]


def _slot(name: str) -> Slot:
    for slot in SLOTS:
        if name == slot:
            return slot
    raise SidstreamError(
        f"the instruction has the slot {{{name}}}, and there are {', '.join(f'{{{slot}}}' for slot in SLOTS)}: use these"
    )
