"""The loss on examples that are not trained on, and how many of them the model would name first: how often that is asked for,
whether it got better, when to stop.

What must hold: the same model gives the same figures, whatever was trained meanwhile; asking for them changes neither the model
nor the random numbers of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from models.language.devices import in_mode
from models.training.losses import scored
from models.training.settings import ValidationOutcome
from models.training.tables import TrainingTable, cut

if TYPE_CHECKING:
    import torch

MOST_TARGETS: Final = 4_000  # that a validation looks at: the loss is then known to about a hundredth
_AN_EPOCH: Final = 4
# A step forward and backward costs about three times a step forward, and validation may take a tenth of the time.
_STEPS_A_BATCH: Final = 3


@dataclass(frozen=True)
class Figures:
    """``loss``: mean -log P of the tokens to be predicted (natural logarithm), each SID in the layout's form; ``recall_at_1``:
    share of the SIDs each of whose tokens is the likeliest of all after those before it: what greedy decoding without the
    catalogue would find.
    """

    loss: float
    recall_at_1: float


class Validation:
    """What validation has said so far; ``best_loss`` is infinite before the first."""

    def __init__(self, table: TrainingTable, *, batch_size: int, steps_an_epoch: int, patience: int) -> None:
        self._table = table
        self._patience = patience
        batches = cut(table, batch_size)
        most = max(1, round(len(batches) * min(1.0, MOST_TARGETS / table.targets)))
        self._batches = [batches[at] for at in np.linspace(0, len(batches) - 1, most).round().astype(int)]
        self.targets = int(sum(table.row_targets[rows].sum() for rows in self._batches))
        self.every = max(1, steps_an_epoch // _AN_EPOCH, _STEPS_A_BATCH * len(self._batches))
        self.best_loss = float("inf")
        self.best_step = self.times = self._since_best = 0
        self.best_recall = 0.0
        self.last_loss: float | None = None

    def figures(self, model: Any) -> Figures:
        """What the model as it is makes of the examples."""
        import torch

        total, tokens, found, targets = 0.0, 0, 0, 0
        with in_mode(model, training=False), torch.no_grad():
            for rows in self._batches:
                batch = self._table.batch(rows, 0.0, np.random.default_rng(0)).tensors()
                said = scored(model, {name: part.to(model.device) for name, part in batch.items()})
                total, tokens = total + float(said.surprise.double().sum()), tokens + len(said.surprise)
                right = self._right(said.token, said.likeliest)
                found, targets = found + int(right.sum()), targets + len(right)
        return Figures(total / tokens, found / targets)

    def _right(self, tokens: torch.Tensor, likeliest: torch.Tensor) -> npt.NDArray[np.bool_]:
        """Which SIDs have all of their tokens right; a SID begins with a token of the first layer and no other does."""
        first = self._table.vocabulary.layer_range(0)
        ids = tokens.cpu().numpy()
        starts = np.flatnonzero((ids >= first.start) & (ids < first.stop))
        right: npt.NDArray[np.bool_] = np.logical_and.reduceat(likeliest.cpu().numpy(), starts)
        return right

    def take(self, figures: Figures, step: int) -> bool:
        """Remembers a loss; whether it is the best so far. One that is no number is never the best."""
        loss = self.last_loss = figures.loss
        self.times += 1
        better = loss < self.best_loss
        if better:
            self.best_loss, self.best_step, self._since_best = loss, step, 0
            self.best_recall = figures.recall_at_1
        else:
            self._since_best += 1
        return better

    @property
    def out_of_patience(self) -> bool:
        """Whether training should stop."""
        return self._since_best >= self._patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best_loss": self.best_loss if self.times else None,
            "best_step": self.best_step,
            "best_recall": self.best_recall,
            "last_loss": self.last_loss,
            "times": self.times,
            "since_best": self._since_best,
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave."""
        self.best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self.best_step, self.times, self._since_best = state["best_step"], state["times"], state["since_best"]
        self.last_loss = state["last_loss"]
        self.best_recall = state.get("best_recall", 0.0)

    def outcome(self, *, stopped_early: bool) -> ValidationOutcome:
        """Figures of the whole training."""
        return ValidationOutcome(
            self.best_loss, self.best_step, self.targets, self.times, stopped_early, self.best_recall
        )
