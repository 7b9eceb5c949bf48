"""A model that has numbers: no NaN, no infinity, in its weights nor in the scores that it gives.

What must hold: such a model is never trained further, added to a bundle or asked; the message names what is not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.errors import SidstreamError

if TYPE_CHECKING:
    from models.language.prompts import PromptBuilder


class NotFiniteError(SidstreamError):
    """Training, weights or scores that are NaN or infinite."""


def first_not_finite(model: Any) -> str | None:
    """Name of the first tensor of ``model`` with NaN or infinite numbers, None if there is none."""
    import torch

    for name, tensor in model.state_dict().items():
        if torch.is_floating_point(tensor) and not bool(torch.isfinite(tensor).all()):
            return str(name)
    return None


def require_finite_weights(model: Any, source: str, what_to_do: str) -> None:
    """Raises ``NotFiniteError`` that names ``source`` and the first tensor with NaN or infinite numbers."""
    name = first_not_finite(model)
    if name is not None:
        raise NotFiniteError(f"{source} has NaN or infinite numbers in {name}: {what_to_do}")


def require_finite_scores(model: Any, prompts: PromptBuilder, source: str, what_to_do: str) -> None:
    """Raises ``NotFiniteError`` if the scores after the shortest prompt are not finite: weights that are finite may still
    overflow on their way through the layers.
    """
    import torch

    token_ids = torch.tensor([prompts.build()], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=token_ids, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise NotFiniteError(
            f"the scores of {source} are NaN or infinite, although its weights are finite: {what_to_do}"
        )
