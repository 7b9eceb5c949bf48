"""NormHead (Baichuan 2, Yang et al. 2023, appendix B): logits from output rows of length 1.

What must hold: rows have length 1 at every step of training; what is saved is a plain ``lm_head`` that holds those
rows, so that any ``transformers`` reads it without code of ours or remote code.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn.utils import parametrize

_LIVE: Final = "lm_head.parametrizations.weight.original"
_PLAIN: Final = "lm_head.weight"


class UnitRows(torch.nn.Module):
    """Rows (V, D) scaled to length 1."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The same directions, Euclidean length 1."""
        return torch.nn.functional.normalize(weight)


def add_norm_head(model: Any) -> None:
    """Makes ``model.lm_head`` (its embeddings untied) a NormHead, in place."""
    parametrize.register_parametrization(model.lm_head, "weight", UnitRows())


def plain_state(model: Any) -> dict[str, torch.Tensor] | None:
    """The weights with a NormHead written out as a plain ``lm_head``; None if there is no NormHead."""
    state: dict[str, torch.Tensor] = model.state_dict()
    if _LIVE not in state:
        return None
    del state[_LIVE]
    state[_PLAIN] = model.lm_head.weight.detach().clone()
    return state
