"""How a model runs: where and in which numbers, by the names of the settings, and whether as it learns or as it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.errors import SidstreamError, first_line

if TYPE_CHECKING:
    import torch


def device_named(name: str, *, option: str = "retriever.device") -> torch.device:
    """``auto``: a CUDA card if there is one, else Apple's GPU, else the processor; else a device as torch names it.

    ``option``: what the person gave the name by, for the message. Raises ``SidstreamError`` for a name that torch does not know
    and for a device that is not there or that computes nothing (such as ``meta``), before a model is loaded.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        (torch.ones(1, device=device) + 1).item()  # some hold a tensor and no numbers of it
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise SidstreamError(
            f"{option} is {name!r}, which cannot be used here ({first_line(error)}): set it to auto, cpu or a device that this "
            "machine has"
        ) from error
    return device


def dtype_named(name: str) -> torch.dtype | None:
    """``auto``: None, the numbers in which the weights were saved; else ``float32``, ``bfloat16`` or ``int8``
    (``models.language.int8``).
    """
    import torch

    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[name]


@contextmanager
def in_mode(model: Any, *, training: bool) -> Iterator[None]:
    """The model as it learns (with dropout) or as it answers; afterwards as it was before."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)
