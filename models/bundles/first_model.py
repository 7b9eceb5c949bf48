"""The model before its first step: a small new one, a checkpoint grown by SID tokens, or that of another bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from models.bundles.bundle import BaseCheckpoint
from models.bundles.manifest import BundleError
from models.bundles.warm_start import Origin, bundle_of_checkpoint, load_origin
from models.errors import SidstreamError
from models.language.instruction import framed, parse_instruction, words_of
from models.language.prompts import PromptBuilder, PromptSettings
from models.sids.vocabulary import SidVocabulary
from models.training.settings import TrainingSettings
from models.training.train_model import Alignment

if TYPE_CHECKING:
    from models.language.language_model import Architecture

_NEW_RATE: Final = 3e-3
_CHECKPOINT_RATE: Final = 1e-4
_LEAST_POSITIONS: Final = 256  # that a new model reads, however short its prompts are
_FEWEST_WORDS: Final = 100  # how often a new tokenizer sees an instruction, which stands in every prompt: at least


@dataclass(frozen=True)
class ModelSettings:
    """The language model to train: ``checkpoint`` directory, that of an ``origin``, or a small one of these sizes and this
    architecture from scratch. ``instruction``: the words of its prompts (``models.language.instruction``), written into the
    checkpoint's chat template if it has one; None for bare prompts. An ``origin`` keeps its own tokens and prompts: of the other
    settings none counts beside it.
    """

    checkpoint: Path | None = None
    hidden_size: int = 128
    model_layers: int = 3
    heads: int = 4
    tokenizer_size: int = 3000
    user_buckets: int = 0
    prompt: PromptSettings = field(default_factory=PromptSettings)
    architecture: Architecture = "llama"
    instruction: str | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.origin is None and self.hidden_size % (2 * self.heads):
            raise SidstreamError(
                f"a new model of {self.heads} heads is a multiple of {2 * self.heads} wide, and {self.hidden_size} is none: give "
                f"--hidden-size {max(1, round(self.hidden_size / 2 / self.heads)) * 2 * self.heads}"
            )

    def described(self) -> str:
        """In words, all that decides its weights before training, but the seed."""
        if self.origin is not None:
            return self.origin.described()
        users = f", {self.user_buckets} user tokens" if self.user_buckets else ""
        if self.checkpoint is not None:
            return f"the checkpoint {self.checkpoint}{users}"
        return (
            f"{self.architecture}, {self.hidden_size} wide, {self.model_layers} layers, {self.heads} heads, "
            f"{self.tokenizer_size} text tokens{users}"
        )

    @property
    def source(self) -> str:
        """What it begins from, for messages."""
        if self.origin is not None:
            return f"the language model of the bundle {self.origin.given}"
        return f"the checkpoint {self.checkpoint}" if self.checkpoint else "the new model"

    @property
    def learning_rate(self) -> float:
        """The usual one: of a checkpoint, or a model that was one at first, and of any other: a small model that goes on learns
        best at the rate that it began with (``python -m benchmarks warm-start``).
        """
        pretrained = self.checkpoint is not None or (self.origin is not None and self.origin.pretrained is not None)
        return _CHECKPOINT_RATE if pretrained else _NEW_RATE

    @property
    def read(self) -> PromptSettings:
        """How prompts are made, but for the words of an instruction that is not kept."""
        return self.prompt if self.origin is None else self.origin.record.prompt


@dataclass(frozen=True, eq=False)
class FirstModel:
    """A causal LM and how it is asked; ``architecture``: its name in the manifest; ``base``: what it was, None for a new one."""

    model: Any
    prompts: PromptBuilder
    architecture: str
    base: BaseCheckpoint | None = None


def first_model(
    settings: ModelSettings,
    training: TrainingSettings,
    *,
    layers: int,
    size: int,
    texts: Iterable[str],
    titles: Iterable[str] = (),
    tasks: Alignment | None = None,
) -> FirstModel:
    """The model for a codebook of these ``layers`` and ``size``. A new one has a tokenizer of ``texts``, which are asked, the
    texts of ``tasks`` and the ``titles`` that prompts have; where there are none, of single bytes.
    """
    if settings.origin is not None:
        return _from_origin(settings.origin, settings, training, layers=layers, size=size, tasks=tasks)
    if settings.checkpoint is not None:
        return _from_checkpoint(settings.checkpoint, settings, training, layers=layers, size=size, tasks=tasks)
    return _new(settings, training.seed, layers=layers, size=size, texts=texts, titles=titles, tasks=tasks)


def _from_origin(
    origin: Origin,
    settings: ModelSettings,
    training: TrainingSettings,
    *,
    layers: int,
    size: int,
    tasks: Alignment | None,
) -> FirstModel:
    model, tokenizer, vocabulary = load_origin(origin, layers=layers, size=size)
    base = origin.base(str(model.config.model_type))
    prompts = PromptBuilder(vocabulary, tokenizer, origin.record.prompt)
    model = _ready(model, settings, training, prompts, tasks)
    return FirstModel(model, prompts, origin.architecture or base.model_type, base)


def _from_checkpoint(
    path: Path,
    settings: ModelSettings,
    training: TrainingSettings,
    *,
    layers: int,
    size: int,
    tasks: Alignment | None,
) -> FirstModel:
    from models.language.language_model import load_checkpoint

    if bundle_of_checkpoint(path) is not None:
        raise BundleError(
            f"{path} is of a bundle, whose SID tokens would be added a second time: give the bundle as origin"
        )
    model, tokenizer, vocabulary = load_checkpoint(path, user_buckets=settings.user_buckets, layers=layers, size=size)
    base = BaseCheckpoint.of(path, str(model.config.model_type))
    parts = () if settings.instruction is None else parse_instruction(settings.instruction)
    words = framed(parts, tokenizer.chat_frame) if parts else ()
    prompts = PromptBuilder(vocabulary, tokenizer, msgspec.structs.replace(settings.prompt, instruction=words))
    return FirstModel(_ready(model, settings, training, prompts, tasks), prompts, base.model_type, base)


def _ready(
    model: Any, settings: ModelSettings, training: TrainingSettings, prompts: PromptBuilder, tasks: Alignment | None
) -> Any:
    """A model that was there before, as it is trained: with LoRA's updates if they are asked for.

    Raises ``SidstreamError`` for one that has too few positions, or cannot be trained (``require_trainable``): asked in float32,
    as half precision hides what is small.
    """
    import torch

    from models.bundles.model_of_bundle import require_positions
    from models.language.families import require_trainable
    from models.language.lora import add_lora

    vocabulary = prompts.vocabulary
    require_positions(model, prompts, settings.source, task=tasks.longest(prompts) if tasks else 0)
    require_trainable(model, prompts.width + vocabulary.layers)
    if not training.lora:
        return model
    if training.precision == "bf16":  # of weights that training does not change
        model = model.to(torch.bfloat16)
    return add_lora(model, training.lora, vocabulary, training.dropout or 0.0, training.seed)


def _new(
    settings: ModelSettings,
    seed: int,
    *,
    layers: int,
    size: int,
    texts: Iterable[str],
    titles: Iterable[str],
    tasks: Alignment | None,
) -> FirstModel:
    from models.language.language_model import small_causal_lm
    from models.language.tokenizer import BYTES, train_tokenizer

    parts = () if settings.instruction is None else parse_instruction(settings.instruction)
    # Words that nothing teaches the meaning of would only make each step's softmax larger.
    learnt = [*texts, *(example.text for example in tasks.examples), *titles] if tasks else [*texts, *titles]
    tokenizer = train_tokenizer(
        [*learnt, *(words_of(parts) for _ in range(max(_FEWEST_WORDS, len(learnt))) if parts)],
        size=settings.tokenizer_size if learnt or parts else BYTES,
    )
    vocabulary = SidVocabulary(text_size=tokenizer.size, user_buckets=settings.user_buckets, layers=layers, size=size)
    prompts = PromptBuilder(vocabulary, tokenizer, msgspec.structs.replace(settings.prompt, instruction=parts))
    model = small_causal_lm(
        vocabulary,
        hidden_size=settings.hidden_size,
        layers=settings.model_layers,
        heads=settings.heads,
        seed=seed,
        architecture=settings.architecture,
        max_positions=max(_LEAST_POSITIONS, prompts.width + layers, tasks.longest(prompts) if tasks else 0),
    )
    return FirstModel(model, prompts, str(settings.architecture))
