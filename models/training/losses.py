"""Fine-tuning losses over the target SID's tokens: cross-entropy, focal and MiLe (paper table 2).

What must hold: each is its paper's formula, averaged over the tokens of the batch; values and gradients are finite
for any finite logits; ``gamma`` 0 makes each of them cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from models.errors import SidstreamError
from models.language.families import branch_inputs, chosen_logits
from models.training.tables import NOTHING_FOLLOWS

if TYPE_CHECKING:
    import torch

Loss = Literal["cross-entropy", "focal", "mile"]

LOSSES: Final[tuple[Loss, ...]] = ("cross-entropy", "focal", "mile")
# γ of the papers' main results; cross-entropy has none.
DEFAULT_GAMMA: Final[Mapping[Loss, float | None]] = {"cross-entropy": None, "focal": 2.0, "mile": 1.0}
_MILE_SIGMA: Final = 1.0  # a token of which the model is certain keeps weight σ^γ


def checked_gamma(loss: Loss, gamma: float | None) -> float | None:
    """γ for ``loss``: as given, or its paper's; None for cross-entropy, which has none."""
    if loss not in LOSSES:
        raise SidstreamError(f"the loss {loss!r} is unknown: choose one of {', '.join(LOSSES)}")
    if gamma is None:
        return DEFAULT_GAMMA[loss]
    if loss == "cross-entropy":
        raise SidstreamError(f"cross-entropy has no gamma (given: {gamma}): leave it out, or choose focal or mile")
    if not 0 <= gamma < float("inf"):
        raise SidstreamError(f"gamma must be a number of at least 0, not {gamma}")
    return gamma


def target_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits (N, V) before the N tokens to be predicted, and these tokens (N,), as the model's family scores them.

    ``batch``: the arrays of a ``TrainingBatch`` by name. Rows are padded at the end, so causal attention needs no mask:
    no real token sees padding.
    """
    import torch

    row, column = torch.nonzero(batch["following"] != NOTHING_FOLLOWS, as_tuple=True)
    branches = branch_inputs(model, batch)
    logits = chosen_logits(model, row, column, input_ids=batch["token_ids"], **branches)
    return logits, batch["following"][row, column]


def target_loss(
    model: Any, batch: Mapping[str, torch.Tensor], loss: Loss = "cross-entropy", gamma: float | None = None
) -> torch.Tensor:
    """Mean loss over the tokens to be predicted in a batch (``target_logits``)."""
    return token_loss(*target_logits(model, batch), loss, gamma)


def surprises(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """-log P (N,) of each token to be predicted in a batch, natural logarithm."""
    return scored(model, batch).surprise


@dataclass(frozen=True)
class Scored:
    """Of each token to be predicted in a batch: its id (N,), -log P (N,), natural logarithm, and whether it is the likeliest of
    all (N,).
    """

    token: torch.Tensor
    surprise: torch.Tensor
    likeliest: torch.Tensor


def scored(model: Any, batch: Mapping[str, torch.Tensor]) -> Scored:
    """What the model makes of the tokens to be predicted, in the order of the rows."""
    import torch

    logits, token = target_logits(model, batch)
    surprise = torch.nn.functional.cross_entropy(logits, token, reduction="none")
    return Scored(token, surprise, logits.argmax(dim=-1) == token)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, loss: Loss, gamma: float | None = None) -> torch.Tensor:
    """Mean loss of float32 logits (N, V) for targets (N,) int64; ``gamma``: None for the loss's own paper's."""
    import torch

    gamma = checked_gamma(loss, gamma)
    if gamma is None:
        return torch.nn.functional.cross_entropy(logits, targets)
    return (focal_loss if loss == "focal" else mile_loss)(logits, targets, gamma)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean of -(1 - p_t)^γ · log p_t (Lin et al. 2017, eq. 4; no class weights α): tokens it knows count for less."""
    import torch

    surprise = torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # -log p_t
    # Kept off zero, because the slope of x^γ at zero is infinite for γ < 1.
    missing = (-torch.expm1(-surprise)).clamp_min(torch.finfo(surprise.dtype).tiny)  # 1 - p_t
    return (missing**gamma * surprise).mean()


def mile_loss(logits: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean of -α · (σ + H)^γ · log p_t (Su et al. 2024): tokens for which the model is undecided count for more.

    H is the entropy of the predicted distribution over the vocabulary (natural logarithm), σ = 1. α = 1 / mean of
    (σ + H)^γ over the batch keeps the loss comparable with cross-entropy. The weights carry no gradient. So it is in
    the authors' code (github.com/suu990901/LLaMA-MiLe-Loss, ``InfoEntropyLoss``), less their cut of probabilities at
    1e-8, which 0 · log 0 = 0 makes needless.
    """
    import torch

    surprise = torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # -log p_t
    entropy = torch.special.entr(torch.softmax(logits.detach(), dim=-1)).sum(dim=-1)
    weight = (_MILE_SIGMA + entropy) ** gamma
    mean: torch.Tensor = (weight / weight.mean() * surprise).mean()
    return mean
