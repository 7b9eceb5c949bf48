"""Options that name one of a few things, and what `sidstream train` makes of its own. All raise ``SidstreamError`` for a value
that is none of them, with those that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from models.errors import SidstreamError

if TYPE_CHECKING:
    from models.examples.alignment import AlignmentSettings
    from models.language.language_model import Architecture
    from models.training.losses import Loss
    from models.training.settings import Precision

Choice = TypeVar("Choice", bound=str)


def one_of(option: str, name: str, known: Sequence[Choice]) -> Choice:
    """The choice of that name. Raises ``SidstreamError`` that names the option and what there is."""
    for choice in known:
        if name == choice:
            return choice
    raise SidstreamError(f"{option} {name!r} is unknown: choose one of {', '.join(known)}")


def instruction_of(prompt: str, instruction: str | None) -> str | None:
    """The words of the instruction that ``--prompt`` and ``--instruction`` ask for, None for bare prompts."""
    from models.language.instruction import DEFAULT_INSTRUCTION, parse_instruction

    if one_of("--prompt", prompt, ("bare", "instruction")) == "bare":
        if instruction is not None:
            raise SidstreamError("--instruction gives the words of --prompt instruction: give both, or neither")
        return None
    text = DEFAULT_INSTRUCTION if instruction is None else instruction
    if not text.strip():
        raise SidstreamError("--instruction is empty: give its words, or --prompt bare")
    parse_instruction(text)  # refused before anything is read
    return text


def alignment_of(tasks: Sequence[str], share: float) -> AlignmentSettings | None:
    """``--align`` and ``--align-share``; None without tasks."""
    from models.examples.alignment import TASKS, AlignmentSettings

    return AlignmentSettings(tuple(one_of("--align", task, TASKS) for task in tasks), share) if tasks else None


def loss_of(name: str) -> Loss:
    """``--loss``."""
    from models.training.losses import LOSSES

    return one_of("--loss", name, LOSSES)


def precision_of(name: str) -> Precision:
    """``--precision``."""
    from models.training.settings import PRECISIONS

    return one_of("--precision", name, PRECISIONS)


def rank_of(lora: str | None) -> int:
    """``--lora``, 0 without it."""
    if lora is None:
        return 0
    number = lora.removeprefix("r=")
    if not number.isdecimal() or int(number) < 1:
        raise SidstreamError(f"--lora {lora!r} is no rank: give a number of 1 or more, such as --lora 16")
    return int(number)


def architecture_of(name: str | None, checkpoint: Path | None) -> Architecture:
    """``--architecture`` of a new model."""
    from models.language.language_model import ARCHITECTURES

    if name is not None and checkpoint is not None:
        raise SidstreamError("--architecture is for a new model, and --checkpoint brings its own: give one of the two")
    return one_of("--architecture", name or "llama", ARCHITECTURES)
