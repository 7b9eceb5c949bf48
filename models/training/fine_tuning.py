"""Fine-tuning of a causal LM on (query, user, history) → SID, by transformers' ``Trainer`` (paper eq. 4).

What must hold: the loss (``models.training.losses``) is over the tokens of the target SID alone; prompts are those of serving
(``PromptBuilder.row``); the same seed gives the same model; and *layer-2 dropout* writes each SID in its other form
(with or without its layer-2 token) at random, in targets and histories independently, so that the model reads and
writes both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog

from models.errors import SidstreamError
from models.language.finite import first_not_finite
from models.training.example_table import NOTHING_FOLLOWS, TrainingTable
from models.training.losses import Loss, checked_gamma, token_loss

if TYPE_CHECKING:
    import torch

# (step, total steps, loss of the last steps)
ProgressCallback = Callable[[int, int, float], None]

_LENGTH_NOISE: Final = 0.1  # share by which lengths are blurred, so that batches differ between epochs

_DIVERGED: Final = 3.0  # times the loss of guessing: no model that learned anything ends there

logger = structlog.get_logger(__name__)


class TrainingFailedError(SidstreamError):
    """Training that ended in no usable model."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to fine-tune. ``max_steps`` (if > 0) overrides ``epochs``.

    ``warm_up``: share of the steps over which the learning rate rises; it then falls along a cosine.
    ``layer2_dropout``: probability with which a SID is written in the form that is not the layout's.
    ``gamma``: γ of the focal or MiLe loss; None for its paper's (see ``models.training.losses``).
    ``seconds``: time that training may take; it stops there with what it has learnt, and the learning rate has fallen by
    then. The same seed then gives the same model only where all steps fit. None: as long as the steps take.
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

    def __post_init__(self) -> None:
        if not 0.0 <= self.layer2_dropout < 1.0:
            raise SidstreamError(f"layer2_dropout must be at least 0 and below 1, not {self.layer2_dropout}")
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
        checked_gamma(self.loss, self.gamma)


@dataclass(frozen=True)
class TrainingOutcome:
    """``skipped``: examples whose item is unknown; ``steps``: done, of ``planned_steps`` (fewer if the time was up);
    ``loss``: mean over the last reported steps (natural logarithm, a token) of the loss that was trained on, so only
    outcomes with the same loss and γ compare.
    """

    examples: int
    skipped: int
    steps: int
    planned_steps: int
    loss: float
    seconds: float
    examples_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Figures for the bundle's manifest."""
        return asdict(self)


class _Budget:
    """How much of a training is done: by its steps, or by its time if that runs out first."""

    def __init__(self, steps: int, warm_up: float, seconds: float) -> None:
        self._steps, self._warm_up, self._seconds = steps, warm_up, seconds
        self._started = time.monotonic()

    def share(self, step: int) -> float:
        """0 at the start, 1 when no step is left or the time is up."""
        return min(1.0, max(step / self._steps, (time.monotonic() - self._started) / self._seconds))

    def learning_rate(self, step: int) -> float:
        """As a share of the highest: rises over the warm-up, then falls along a cosine. The first step learns already."""
        share = self.share(step)
        if share < self._warm_up:
            return max(share, 1 / self._steps) / self._warm_up
        return 0.5 * (1 + math.cos(math.pi * (share - self._warm_up) / max(1 - self._warm_up, 1e-9)))


class _Batches:
    """A data loader: batches of like lengths in random order, anew each epoch; what ``Trainer`` needs of a loader and
    no more.
    """

    def __init__(self, table: TrainingTable, settings: TrainingSettings) -> None:
        self._table, self._settings = table, settings
        self._epoch = 0
        self.dataset = table  # Trainer counts the examples

    def __len__(self) -> int:
        return -(-len(self._table) // self._settings.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which epoch begins."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        import torch

        random = np.random.default_rng((self._settings.seed, self._epoch))
        lengths = self._table.lengths * random.uniform(1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, size=len(self._table))
        batches = np.array_split(np.argsort(lengths, kind="stable"), len(self))
        for number in random.permutation(len(batches)):
            batch = self._table.batch(batches[number], self._settings.layer2_dropout, random)
            yield {key: torch.from_numpy(array) for key, array in asdict(batch).items() if array is not None}
        self._epoch += 1


def _failed(what: str, settings: TrainingSettings) -> TrainingFailedError:
    gamma = f" or a γ smaller than {settings.gamma:g}" if settings.gamma else ""
    return TrainingFailedError(
        f"training failed: {what}. Nothing was kept of this model; train again with a learning rate smaller than "
        f"{settings.learning_rate:g} (usual are 0.003 for a new model, 0.0001 for a checkpoint){gamma}"
    )


def _last_checkpoint(directory: Path | None) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(directory)) if directory is not None and directory.is_dir() else None


def target_loss(
    model: Any, batch: Mapping[str, torch.Tensor], loss: Loss = "cross-entropy", gamma: float | None = None
) -> torch.Tensor:
    """Mean loss over the tokens to be predicted; ``lm_head`` runs on the positions before them alone.

    ``batch``: the arrays of a ``TrainingBatch`` by name. Rows are padded at the end, so causal attention needs no mask:
    no real token sees padding.
    """
    import torch

    base, head = getattr(model, model.base_model_prefix), model.get_output_embeddings()
    branches = {}
    if "visible" in batch:
        mask = torch.zeros(batch["visible"].shape, dtype=model.dtype, device=model.device)
        mask.masked_fill_(~batch["visible"], torch.finfo(model.dtype).min)
        branches = {"attention_mask": mask[:, None], "position_ids": batch["positions"]}
    hidden = base(input_ids=batch["token_ids"], use_cache=False, **branches).last_hidden_state
    row, column = torch.nonzero(batch["following"] != NOTHING_FOLLOWS, as_tuple=True)
    return token_loss(head(hidden[row, column]).float(), batch["following"][row, column], loss, gamma)


def fine_tune(
    model: Any,
    table: TrainingTable,
    settings: TrainingSettings,
    progress: ProgressCallback | None = None,
    checkpoints: Path | None = None,
) -> TrainingOutcome:
    """Trains ``model`` in place and leaves it in evaluation mode.

    Raises ``TrainingFailedError`` at the first step whose loss is NaN or infinite, and at the end if a weight is or the
    loss is far worse than that of guessing.

    ``checkpoints``: directory that holds the state after each epoch; training goes on from the last one there, to the
    same weights as without the interruption. Keep one directory a table, settings and model; delete it afterwards.
    ``settings.seconds`` counts anew from there.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    loader = _Batches(table, settings)
    total = settings.max_steps if settings.max_steps > 0 else max(1, round(settings.epochs * len(loader)))
    budget = _Budget(total, settings.warm_up, settings.seconds) if settings.seconds is not None else None
    losses: list[float] = []

    class TargetTrainer(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return loader

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            loss = target_loss(model, inputs, settings.loss, settings.gamma)
            if not torch.isfinite(loss):
                step = f"{self.state.global_step + 1:,} of {total:,}"
                raise _failed(f"the loss of step {step} is NaN or infinite", settings)
            return loss

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if budget is None:
                return super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, budget.learning_rate)
            return self.lr_scheduler

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                if progress is not None:
                    done = int(state.global_step)
                    progress(done, total if budget is None else round(done / budget.share(done)), losses[-1])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if budget is not None and budget.share(int(state.global_step)) >= 1:
                control.should_training_stop = control.should_log = True

    with nullcontext(checkpoints) if checkpoints else TemporaryDirectory(prefix="sidstream-train-") as directory:
        arguments = TrainingArguments(
            output_dir=str(directory),
            max_steps=total,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(settings.warm_up * total)),
            weight_decay=settings.weight_decay,
            optim="adamw_torch_fused",
            seed=settings.seed,
            logging_steps=min(settings.report_every, total),
            logging_nan_inf_filter=False,
            save_strategy="steps" if checkpoints else "no",
            save_steps=len(loader),
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = TargetTrainer(model=model, args=arguments, train_dataset=table, callbacks=[Report()])
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        seconds = time.perf_counter() - started
    model.eval()
    if (broken := first_not_finite(model)) is not None:  # of the last step, whose loss nobody asks for any more
        raise _failed(f"after the last step {broken} has NaN or infinite numbers", settings)
    guessing = math.log(int(model.get_input_embeddings().weight.shape[0]))
    if losses and losses[-1] > _DIVERGED * guessing:
        raise _failed(f"the loss at the end is {losses[-1]:.1f}, and guessing would give {guessing:.1f}", settings)
    steps = int(trainer.state.global_step)
    seen = steps * table.targets / len(loader)
    outcome = TrainingOutcome(
        examples=table.targets,
        skipped=table.skipped,
        steps=steps,
        planned_steps=total,
        loss=losses[-1] if losses else float("nan"),
        seconds=round(seconds, 2),
        examples_per_second=round(seen / seconds, 1),
    )
    logger.info("fine_tuned", **outcome.to_dict())
    return outcome
