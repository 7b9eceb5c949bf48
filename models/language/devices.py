"""Where a model runs and in which numbers, by the names of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import SidstreamError

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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SidstreamError(
            f"{option} is {name!r}, which cannot be used here ({reason}): set it to auto, cpu or a device that this "
            "machine has"
        ) from error
    return device


def dtype_named(name: str) -> torch.dtype | None:
    """``auto``: None, the numbers in which the weights were saved; else ``float32``, ``bfloat16`` or ``int8``
    (``models.language.int8``).
    """
    import torch

    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[name]
