"""How to fine-tune, what came of it, and how far it is: records for commands, manifests and progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import SidstreamError
from models.training.losses import Loss, checked_gamma

Precision = Literal["float32", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bf16")
DEFAULT_PATIENCE: Final = 4  # validations; there are four an epoch


class TrainingFailedError(SidstreamError):
    """Training that ended in no usable model."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to fine-tune. ``max_steps`` (if > 0) overrides ``epochs``; ``batch_size``: targets a step, about.

    ``warm_up``: share of the steps over which the learning rate rises; it then falls along a cosine.
    ``layer2_dropout``: probability with which a SID is written in the form that is not the layout's.
    ``gamma``: γ of the focal or MiLe loss; None for its paper's (see ``models.training.losses``).
    ``report_every``: steps over whose mean the loss is reported.
    ``seconds``: time that training may take; it stops there with what it has learnt, and the learning rate has fallen by
    then. The same seed then gives the same model only where all steps fit. None: as long as the steps take.
    ``patience``: validations without a better loss after which training stops, if there are validation data.
    ``accumulate``: parts in which the batch of a step is run, one after the other: less memory, the same gradients (but for
    ``mile``, whose weights are of a part). ``precision``: of the forward and backward pass; weights and optimiser stay float32.
    ``lora``: rank of the updates that a checkpoint is trained by (``models.language.lora``), 0 to train all of its weights.
    ``gradient_checkpointing``: activations are computed again where the backward pass needs them, not kept.
    ``dropout``: of attention and hidden states, in the fields that the family has (``models.language.dropout``), and of LoRA's
    updates; None for what a checkpoint's configuration says (a new model's says 0).
    ``report_to``: services that transformers reports to, besides ``report_directory`` for TensorBoard's files
    (``models.training.reports``).
    """

    epochs: float = 3.0
    max_steps: int = 0
    batch_size: int = 128
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    weight_decay: float = 0.01
    seed: int = 0
    layer2_dropout: float = 0.0
    report_every: int = 20
    loss: Loss = "cross-entropy"
    gamma: float | None = None
    seconds: float | None = None
    patience: int = DEFAULT_PATIENCE
    accumulate: int = 1
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    lora: int = 0
    dropout: float | None = None
    report_to: tuple[str, ...] = ()
    report_directory: Path | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.layer2_dropout < 1.0:
            raise SidstreamError(f"layer2_dropout must be at least 0 and below 1, not {self.layer2_dropout}")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise SidstreamError(f"dropout must be at least 0 and below 1, not {self.dropout:g}: correct it")
        if self.batch_size < 1 or (self.epochs <= 0 and self.max_steps <= 0):
            raise SidstreamError("batch size and epochs (or max_steps) must be positive: correct the training settings")
        for name in ("learning_rate", "epochs", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise SidstreamError(
                    f"{name} must be a number, not {getattr(self, name)}: correct the training settings"
                )
        if self.learning_rate <= 0:
            raise SidstreamError(f"the learning rate must be positive, not {self.learning_rate:g}: correct it")
        if self.seconds is not None and not self.seconds > 0:
            raise SidstreamError(
                f"the time of training must be positive, not {self.seconds:g} s: give it more, or none"
            )
        if self.patience < 1 or self.report_every < 1 or self.accumulate < 1:
            raise SidstreamError(
                "patience, report_every and accumulate must be at least 1: correct the training settings"
            )
        if self.precision not in PRECISIONS:
            raise SidstreamError(f"the precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        if not 0.0 <= self.warm_up < 1.0:
            raise SidstreamError(
                f"warm_up must be at least 0 and below 1, not {self.warm_up:g}: it is a share of the steps"
            )
        if self.lora < 0:
            raise SidstreamError(
                f"the rank of LoRA must not be negative, not {self.lora}: leave it out, or give 8 or 16"
            )
        if self.weight_decay < 0:
            raise SidstreamError(f"weight_decay must not be negative, not {self.weight_decay:g}: correct it")
        checked_gamma(self.loss, self.gamma)

    def facts(self) -> dict[str, Any]:
        """What decides the weights, by the names that people know; neither the time that it may take nor reports are."""
        return {
            **({"steps": self.max_steps} if self.max_steps > 0 else {"epochs": self.epochs}),
            "batch size": self.batch_size,
            "learning rate": self.learning_rate,
            "warm-up": self.warm_up,
            "weight decay": self.weight_decay,
            "seed": self.seed,
            "layer-2 dropout": self.layer2_dropout,
            "loss": self.loss,
            "gamma": checked_gamma(self.loss, self.gamma),
            "patience": self.patience,
            **({"accumulate": self.accumulate} if self.accumulate > 1 else {}),
            **({"LoRA": self.lora} if self.lora else {}),
            **({"dropout": self.dropout} if self.dropout is not None else {}),
            **({"precision": self.precision} if self.precision != "float32" else {}),
        }


@dataclass(frozen=True)
class ValidationOutcome:
    """``loss``: the best, a mean over tokens of -log P (natural logarithm), reached after ``step`` steps, whose weights were
    kept; ``targets``: SIDs that it was measured on; ``times``: how often; ``stopped_early``: whether patience ended training;
    ``recall_at_1``: share of these targets each of whose tokens had the highest probability of all at its place.
    """

    loss: float
    step: int
    targets: int
    times: int
    stopped_early: bool
    recall_at_1: float = 0.0


@dataclass(frozen=True)
class TrainingOutcome:
    """``examples``: SIDs to be predicted, ``rows``: sequences that hold them; ``skipped``: examples whose item is unknown,
    ``skipped_mentions``: unknown items left out of histories; ``steps``: done, of ``planned_steps`` (fewer if the time was
    up or validation ended it); ``loss``: mean over the last reported steps (natural logarithm, a token) of the loss that
    was trained on, so only outcomes with the same loss and γ compare; ``seconds``: of all its runs, and
    ``examples_per_second`` of the last; ``resumed_at``: step from which that one went on, 0 for the beginning.
    """

    examples: int
    skipped: int
    steps: int
    planned_steps: int
    loss: float
    seconds: float
    examples_per_second: float
    rows: int = 0
    skipped_mentions: int = 0
    resumed_at: int = 0
    validation: ValidationOutcome | None = None

    def to_dict(self) -> dict[str, Any]:
        """Figures for the bundle's manifest."""
        return asdict(self)

    @property
    def stopped_early(self) -> bool:
        """Whether validation ended it."""
        return self.validation is not None and self.validation.stopped_early


@dataclass(frozen=True)
class TrainingProgress:
    """After a step: how many of how many (an estimate where the time decides), mean loss of the last steps, targets a second
    since the beginning of this run, and the last validation's loss (None: none yet).
    """

    step: int
    steps: int
    loss: float
    targets_per_second: float
    validation_loss: float | None = None


ProgressCallback = Callable[[TrainingProgress], None]
"""Called after each step."""
