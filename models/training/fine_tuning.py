"""Fine-tuning of a causal LM on (query, user, history) → SID, by transformers' ``Trainer`` (paper eq. 4).

What must hold: the loss (``models.training.losses``) is over the tokens of the target SID alone; prompts are those of serving
(``PromptBuilder.row``); the same seed gives the same model, interrupted or not; and *layer-2 dropout* writes each SID in its
other form (with or without its layer-2 token) at random, in targets and histories independently, so that the model reads
and writes both.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog

from models.errors import SidstreamError, first_line
from models.language.dropout import set_dropout
from models.language.finite import first_not_finite
from models.language.language_model import quiet_transformers
from models.language.lora import load_weights
from models.training import processes, reports
from models.training.checkpoints import Checkpoints, Mark
from models.training.losses import target_loss
from models.training.settings import (
    ProgressCallback,
    TrainingFailedError,
    TrainingOutcome,
    TrainingProgress,
    TrainingSettings,
)
from models.training.tables import Batches, BlockedTable, Shares, TrainingTable
from models.training.validation import Figures, Validation

_OUT_OF_MEMORY: Final = ("out of memory", "DefaultCPUAllocator")  # of MPS, and of the processor
_DIVERGED: Final = 3.0  # times the loss of guessing: no model that learned anything ends there

logger = structlog.get_logger(__name__)


class _Budget:
    """How much of a training is done: by its steps, or by its time if that runs out first; by the first process's clock, asked
    once a step, so that several processes learn at the same rate.
    """

    def __init__(self, steps: int, warm_up: float, seconds: float | None = None, *, begun_at: int = 0) -> None:
        """``begun_at``: the step from which it goes on; the time is for what is left then."""
        self._steps, self._warm_up, self._seconds = steps, warm_up, seconds
        self._before = begun_at / steps
        self._started = time.monotonic()
        self._looked: tuple[int, float] = (-1, 0.0)  # at which step, and the share of the time

    def share(self, step: int) -> float:
        """0 at the start, 1 when no step is left or the time is up."""
        by_steps = step / self._steps
        if self._seconds is None:
            return min(1.0, by_steps)
        if self._looked[0] != step:
            (passed,) = processes.of_the_first((time.monotonic() - self._started) / self._seconds)
            self._looked = step, passed
        return min(1.0, max(by_steps, self._before + (1 - self._before) * self._looked[1]))

    def total_steps(self, step: int) -> float:
        """How many steps it will have been, as far as ``step`` of them tell."""
        before = self._before * self._steps
        share = (self.share(step) - self._before) / max(1 - self._before, 1e-9)
        return before + (step - before) / max(share, 1e-9)

    def learning_rate(self, step: int) -> float:
        """As a share of the highest: rises over the warm-up, then falls along a cosine. The first step learns already."""
        share = self.share(step)
        if share < self._warm_up:
            return min(1.0, max(share, 1 / self._steps) / self._warm_up)
        return 0.5 * (1 + math.cos(math.pi * (share - self._warm_up) / max(1 - self._warm_up, 1e-9)))


def fine_tune(
    model: Any,
    table: TrainingTable | BlockedTable,
    settings: TrainingSettings,
    progress: ProgressCallback | None = None,
    checkpoints: Checkpoints | None = None,
    validation: TrainingTable | None = None,
) -> TrainingOutcome:
    """Trains ``model`` in place and leaves it in evaluation mode, with the best weights of ``validation`` if that is given (in
    the first of several processes, which alone saves it).

    Raises ``TrainingFailedError`` at the first step whose loss is NaN or infinite, and at the end if a weight is or the
    loss is far worse than that of guessing.

    Raises ``SidstreamError`` for ``settings.dropout`` where the model's family has none.

    ``checkpoints``: training goes on from the newest one, to the same weights as without the interruption (where
    ``settings.seconds`` ends neither; they count anew). Remove them when the model is where it belongs.
    """
    if settings.dropout is not None:
        set_dropout(model, settings.dropout, lora=settings.lora > 0)
    return _Run(model, table, settings, progress, checkpoints, validation).outcome()


class _Run:
    """One call of ``fine_tune``: what Trainer's callbacks share."""

    def __init__(
        self,
        model: Any,
        table: TrainingTable | BlockedTable,
        settings: TrainingSettings,
        progress: ProgressCallback | None,
        checkpoints: Checkpoints | None,
        validation: TrainingTable | None,
    ) -> None:
        self.model, self.table, self.settings, self.progress = model, table, settings, progress
        self.checkpoints = checkpoints
        self.shares = Shares(settings.accumulate, processes.world(), processes.rank())
        self.loader = Batches(
            table,
            settings.batch_size,
            layer2_dropout=settings.layer2_dropout,
            seed=settings.seed,
            shares=self.shares,
        )
        self.total = (
            settings.max_steps if settings.max_steps > 0 else max(1, round(settings.epochs * self.loader.steps))
        )
        self.validation = (
            Validation(
                validation,
                batch_size=settings.batch_size,
                steps_an_epoch=self.loader.steps,
                patience=settings.patience,
            )
            if validation is not None
            else None
        )
        self.news: dict[str, float] = {}  # what reports have not been told
        self.losses: deque[float] = deque(maxlen=settings.report_every)
        self.loss_of_step = 0.0
        self.done = self.begun_at = 0  # steps
        self.seconds_before = 0.0
        self.started = time.monotonic()

    def outcome(self) -> TrainingOutcome:
        """Trains, checks the model, and says what came of it."""
        newest = self.checkpoints.newest() if self.checkpoints is not None else None
        if newest is not None:
            self._go_on_from(newest[1])
        self.budget = _Budget(self.total, self.settings.warm_up, self.settings.seconds, begun_at=self.begun_at)
        self.started = time.monotonic()
        if self.done < self.total:
            with (
                nullcontext(self.checkpoints.directory)
                if self.checkpoints is not None
                else TemporaryDirectory(prefix="sidstream-train-")
            ) as directory:
                self.directory = Path(directory)
                self._train(None if newest is None else newest[0])
                self._keep_best()
        elif newest is not None:  # trained to its end, and stopped before the model was anywhere else
            self.directory = newest[0].parent
            with _read_whole(newest[0]):
                load_weights(self.model, newest[0])
            self._keep_best()
        seconds = time.monotonic() - self.started
        self.model.eval()
        self._require_learnt()
        loss = sum(self.losses) / len(self.losses) if self.losses else float("nan")
        steps = self.done - self.begun_at
        outcome = TrainingOutcome(
            examples=self.table.targets,
            skipped=0,
            steps=self.done,
            planned_steps=self.total,
            loss=loss,
            seconds=round(self.seconds_before + seconds, 2),
            examples_per_second=round(steps * self._targets_a_step / seconds, 1),
            rows=len(self.table),
            resumed_at=self.begun_at,
            validation=None
            if self.validation is None
            else self.validation.outcome(stopped_early=self.validation.out_of_patience),
        )
        logger.info("fine_tuned", **outcome.to_dict())
        return outcome

    def _go_on_from(self, mark: Mark) -> None:
        self.done = self.begun_at = mark.step
        self.seconds_before = mark.seconds
        self.losses.extend(mark.losses)
        self.loader.begin_after(mark.step)
        if self.validation is not None and mark.validation is not None:
            self.validation.go_on_from(mark.validation)

    def _train(self, resume_from: Path | None) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
        from transformers.trainer import TRAINER_STATE_NAME
        from transformers.trainer_callback import TrainerState

        run = self

        class TargetTrainer(Trainer):  # type: ignore[misc]
            def get_train_dataloader(self) -> Any:
                return run.loader

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                share = inputs.pop("share")
                loss = target_loss(model, inputs, run.settings.loss, run.settings.gamma) * share
                run.saw(float(loss.detach()))
                # Trainer divides by the parts of a process, and the processes take the mean of their gradients.
                return loss * run.shares.parts

            def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
                with _read_whole(resume_from_checkpoint):
                    super()._load_from_checkpoint(resume_from_checkpoint, model)

            def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
                with _read_whole(checkpoint):
                    super()._load_optimizer_and_scheduler(checkpoint)

            def _load_rng_state(self, checkpoint: str | None) -> None:
                with _read_whole(checkpoint):
                    super()._load_rng_state(checkpoint)

            def _save_checkpoint(self, model: Any, trial: Any) -> None:
                try:
                    super()._save_checkpoint(model, trial)
                except (OSError, SafetensorError) as error:
                    raise SidstreamError(
                        f"the checkpoint after step {run.done:,} could not be written to {run.directory}: {error}. The one "
                        "before it is whole: make room there, and train again with the same settings to go on from it"
                    ) from error

            def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                    optimizer or self.optimizer, run.budget.learning_rate
                )
                return self.lr_scheduler

        class Steps(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                ended = run.stepped(int(state.global_step))
                if run.news or ended or run.done % run.settings.report_every == 0:
                    trainer.log(run.told(float(trainer.lr_scheduler.get_last_lr()[0])))
                due = run.checkpoints is not None and (run.checkpoints.is_due() or ended)
                control.should_training_stop, control.should_save = processes.decided(ended, due)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                run.saved()

        arguments = TrainingArguments(
            output_dir=str(self.directory),
            max_steps=self.total,
            per_device_train_batch_size=self.settings.batch_size,
            gradient_accumulation_steps=self.settings.accumulate,
            gradient_checkpointing=self.settings.gradient_checkpointing,
            bf16=self.settings.precision == "bf16",
            use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            optim="adamw_torch_fused",
            seed=self.settings.seed,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            ignore_data_skip=True,  # the loader begins where it should by itself
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several cards without several processes: one of them works
        if self.settings.gradient_checkpointing:
            self.model.enable_input_require_grads()  # below layers that learn nothing themselves (LoRA)
        if resume_from is not None:
            with _read_whole(resume_from):
                TrainerState.load_from_json(str(resume_from / TRAINER_STATE_NAME))
        services = reports.callbacks(self.settings.report_to, self.settings.report_directory)
        trainer = TargetTrainer(
            model=self.model, args=arguments, train_dataset=self.table, callbacks=[Steps(), *services]
        )
        trainer.remove_callback(PrinterCallback)
        with torch.random.fork_rng(devices=[]), quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")  # of rows that are new
            try:
                trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
            except Exception as error:
                if _is_of_memory(error):
                    raise self._too_large(error) from error
                raise

    def saw(self, loss: float) -> None:
        """A part's loss of the step that is being taken."""
        if not math.isfinite(loss):
            raise self._failed(f"the loss of step {self.done + 1:,} of {self.total:,} is NaN or infinite")
        self.loss_of_step += loss

    def stepped(self, step: int) -> bool:
        """After a step: validates if it is time, reports, and says whether training ends here."""
        self.done = step
        self.losses.append(processes.summed(self.loss_of_step))
        self.loss_of_step = 0.0
        ended = self.budget.share(step) >= 1
        if self.validation is not None and (ended or step % self.validation.every == 0):
            figures = Figures(*processes.of_the_first(*astuple(self.validation.figures(self.model))))
            self.news |= {"eval_loss": figures.loss, "eval_recall_at_1": figures.recall_at_1}
            if self.validation.take(figures, step) and processes.is_first():
                _save(self.model, self._best())
            ended = ended or self.validation.out_of_patience
        if self.progress is not None and processes.is_first():
            steps = self.total if self.settings.seconds is None else round(self.budget.total_steps(step))
            seconds = max(time.monotonic() - self.started, 1e-9)
            self.progress(
                TrainingProgress(
                    step=step,
                    steps=step if ended else max(step + 1, steps),
                    loss=sum(self.losses) / len(self.losses),
                    targets_per_second=(step - self.begun_at) * self._targets_a_step / seconds,
                    validation_loss=None if self.validation is None else self.validation.last_loss,
                )
            )
        return ended

    def told(self, learning_rate: float) -> dict[str, float]:
        """What reports are told of the last steps, by transformers' names."""
        news, self.news = self.news, {}
        return {"loss": sum(self.losses) / len(self.losses), "learning_rate": learning_rate, **news}

    def saved(self) -> None:
        """Trainer has written a checkpoint."""
        if self.checkpoints is not None and processes.is_first():
            self.checkpoints.complete(
                Mark(
                    step=self.done,
                    seconds=round(self.seconds_before + time.monotonic() - self.started, 2),
                    losses=list(self.losses),
                    validation=None if self.validation is None else self.validation.state(),
                )
            )

    @property
    def _targets_a_step(self) -> float:
        return self.table.targets / self.loader.steps

    def _best(self) -> Path:
        assert self.validation is not None
        return Checkpoints.best(self.directory, self.validation.best_step)

    def _keep_best(self) -> None:
        # The file is the first process's, which alone goes on with the model.
        if self.validation is not None and self.validation.best_step not in (0, self.done) and processes.is_first():
            with _read_whole(self._best()):
                _load(self.model, self._best())

    def _require_learnt(self) -> None:
        if (
            broken := first_not_finite(self.model)
        ) is not None:  # of the last step, whose loss nobody asks for any more
            raise self._failed(f"after the last step {broken} has NaN or infinite numbers")
        guessing = math.log(int(self.model.config.vocab_size))
        last = sum(self.losses) / len(self.losses) if self.losses else 0.0
        if last > _DIVERGED * guessing:
            raise self._failed(f"the loss at the end is {last:.1f}, and guessing would give {guessing:.1f}")

    def _too_large(self, error: Exception) -> SidstreamError:
        s = self.settings
        smaller = [f"--accumulate {2 * s.accumulate}"] if 2 * s.accumulate <= s.batch_size else []
        smaller += [] if s.gradient_checkpointing else ["--gradient-checkpointing"]
        smaller += [] if s.precision == "bf16" else ["--precision bf16"]
        smaller += [] if s.lora else ["--lora 16 (of a checkpoint)"]
        return SidstreamError(
            f"training needs more memory than there is, in step {self.done + 1:,}: {first_line(error)}. Need less by "
            f"{', '.join(smaller)} or a smaller --batch-size"
        )

    def _failed(self, what: str) -> TrainingFailedError:
        gamma = f" or a γ smaller than {self.settings.gamma:g}" if self.settings.gamma else ""
        return TrainingFailedError(
            f"training failed: {what}. Nothing was kept of this model; train again with a learning rate smaller than "
            f"{self.settings.learning_rate:g} (usual are 0.003 for a new model, 0.0001 for a checkpoint){gamma}"
        )


@contextmanager
def _read_whole(path: Path | str | None) -> Iterator[None]:
    """Says of whatever fails in reading a checkpoint what to do about it; None where there is none to read."""
    try:
        yield
    except Exception as error:
        if path is None or _is_of_memory(error) or isinstance(error, SidstreamError):
            raise
        raise SidstreamError(
            f"the checkpoint {path} cannot be read ({first_line(error)}): remove it to go on from an older one if there is one, "
            "or begin anew with --anew"
        ) from error


def _is_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def _save(model: Any, path: Path) -> None:
    from safetensors.torch import save_model

    partial = path.with_suffix(".partial")
    save_model(model, str(partial))
    partial.replace(path)


def _load(model: Any, path: Path) -> None:
    from safetensors.torch import load_model

    load_model(model, str(path))
