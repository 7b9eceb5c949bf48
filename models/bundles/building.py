"""From a catalogue to a bundle, and from a bundle and examples to one with a language model: the two steps before
anything streams.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from models.bundles.bundle import (
    Bundle,
    add_language_model,
    create_bundle,
    require_free,
    staging_directory,
)
from models.bundles.first_model import ModelSettings, first_model
from models.catalogue import CatalogueItem
from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.codebooks.collapse import CollapsedLayer, collapsed_layers, likely_cause
from models.codebooks.rq_vae import RqVaeSettings, fit_rq_vae
from models.codebooks.screen_choice import chosen_screen
from models.dense.codebook_input import fit_codebook_input
from models.errors import SidstreamError
from models.examples.alignment import AlignmentSettings, alignment_examples
from models.examples.records import TrainingData, TrainingExample
from models.examples.streamed import StreamedData
from models.language.prompts import PromptSettings
from models.sids.census import count_tokens
from models.sids.head_tokens import all_tokens, no_tokens, top_k, top_p
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training import processes
from models.training.checkpoints import Checkpoints
from models.training.losses import checked_gamma
from models.training.settings import ProgressCallback, TrainingOutcome, TrainingSettings
from models.training.train_model import Alignment, train_model

if TYPE_CHECKING:
    pass

FitMethod = Literal["k-means", "rq-vae"]
HeadMethod = Literal["none", "top-k", "top-p", "all"]

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How to fit codebooks, and which layer-2 tokens the first layout leaves out (paper § 4.2): none, top@K, top@p,
    or all. ``iterations``: of the k-means; ``rq_vae``: for the method of that name; ``co_occurrence``: weight of what histories
    say of an item beside its embedding of length 1, 0 for the embedding alone; ``screen``: whether the encoder has
    the int8 screen, None where it saves time.
    """

    layers: int = 3
    size: int = 256
    iterations: int = 20
    seed: int = 0
    method: FitMethod = "k-means"
    rq_vae: RqVaeSettings = field(default_factory=RqVaeSettings)
    head_method: HeadMethod = "none"
    k: int = 0
    p: float = 0.0
    generation: int = 1
    co_occurrence: float = 0.0
    screen: bool | None = None

    def head_tokens(self, counts: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """Head tokens for layer-2 counts (M,)."""
        match self.head_method:
            case "none":
                return no_tokens()
            case "top-k":
                return top_k(counts, self.k)
            case "top-p":
                return top_p(counts, self.p)
            case "all":
                return all_tokens(self.size)


@dataclass(frozen=True)
class Fitted:
    """The bundle, its codebook, and codes (N, L) and census (L, M) of the items that it was fitted on; ``collapsed``:
    layers on which these SIDs tell little, and ``cause``: why that may be and what to do, empty if there are none; ``screened``:
    whether the encoder has the int8 screen.
    """

    bundle: Bundle
    codebook: Codebook
    codes: npt.NDArray[np.uint16]
    census: npt.NDArray[np.int64]
    collapsed: tuple[CollapsedLayer, ...] = ()
    cause: str = ""
    screened: bool = False


def fit_bundle(
    embeddings: npt.NDArray[np.float32],
    directory: Path,
    settings: FitSettings,
    *,
    embedding: str = "",
    towers: str | None = None,
    ids: Sequence[str] = (),
    histories: Sequence[Sequence[int]] = (),
    embedding_model: str | None = None,
    replace: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> Fitted:
    """Codebooks fitted on embeddings (N, D), the first layout, and a bundle without a language model.

    ``ids`` of the items and ``histories`` of rows: for co-occurrence. ``towers``: id of the text towers that made the
    embeddings; ``embedding_model``: the name that updates give to what made theirs. ``progress``: layer_index, iteration and mean
    squared error; RQ-VAE learns all layers at once, so that its epochs are reported as iterations of layer_index 0.
    """
    require_free(directory, replace=replace)
    if settings.head_method == "top-k" and settings.k > settings.size:
        raise SidstreamError(
            f"top-k with k = {settings.k} of {settings.size} tokens: give a k of at most {settings.size}"
        )
    if settings.screen and settings.method == "rq-vae":
        raise SidstreamError("a codebook of rq-vae has no screen: its products are few; leave --screen out")
    vectors, codebook_input = embeddings, None
    if settings.co_occurrence:
        codebook_input, vectors = fit_codebook_input(
            embeddings, ids, histories, settings.co_occurrence, seed=settings.seed
        )
    codebook = _fit_codebook(vectors, settings, progress)
    codes = codebook.encode(vectors)
    census = count_tokens(codes, settings.size)
    layout = Layout(
        generation=settings.generation,
        codebook_id=codebook.id,
        layers=settings.layers,
        size=settings.size,
        head_tokens=settings.head_tokens(census[HEAD_LAYER_INDEX]),
    )
    screen = chosen_screen(codebook, vectors, settings.screen)
    bundle = create_bundle(
        directory,
        codebook,
        layout,
        census=census,
        embedding=embedding,
        towers=towers,
        embedding_norms=norm_quantiles(embeddings),
        embedding_model=embedding_model,
        codebook_input=codebook_input,
        screen=screen,
        replace=replace,
    )
    collapsed = collapsed_layers(census)
    cause = likely_cause(vectors, settings.size) if collapsed else ""
    if collapsed:
        logger.warning("codebook_collapsed", layers=[str(layer) for layer in collapsed], cause=cause)
    return Fitted(bundle, codebook, codes, census, collapsed, cause, screened=screen is not None)


def norm_quantiles(embeddings: npt.NDArray[np.float32]) -> tuple[float, float, float, float, float]:
    """Norms of embeddings (N, D) at 0, 1, 50, 99 and 100 % of them: what the assigner holds others against."""
    low, one_percent, median, most, high = np.quantile(
        np.linalg.norm(embeddings, axis=1), (0, 0.01, 0.5, 0.99, 1)
    ).tolist()
    return low, one_percent, median, most, high


def _fit_codebook(
    embeddings: npt.NDArray[np.float32], settings: FitSettings, progress: Callable[[int, int, float], None] | None
) -> Codebook:
    match settings.method:
        case "k-means":
            return fit_residual_kmeans(
                embeddings,
                layers=settings.layers,
                size=settings.size,
                iterations=settings.iterations,
                seed=settings.seed,
                progress=progress,
            )
        case "rq-vae":
            return fit_rq_vae(
                embeddings,
                layers=settings.layers,
                size=settings.size,
                settings=settings.rq_vae,
                seed=settings.seed,
                progress=None if progress is None else partial(progress, 0),
            )


def train_bundle(
    bundle: Bundle,
    data: TrainingData | StreamedData | Sequence[TrainingExample],
    item_ids: Sequence[str],
    codes: npt.NDArray[np.uint16],
    model_settings: ModelSettings,
    training: TrainingSettings,
    *,
    items: Sequence[CatalogueItem] = (),
    alignment: AlignmentSettings | None = None,
    validation: TrainingData | None = None,
    progress: ProgressCallback | None = None,
    checkpoints: Path | None = None,
) -> tuple[Bundle, TrainingOutcome]:
    """Fine-tunes a language model for the bundle's layout and adds it to the bundle.

    ``codes``: (N, L) of ``item_ids``; ``items``: the catalogue's, for the tasks of ``alignment`` and for prompts with titles. A
    new tokenizer is trained on the text that prompts and targets have; where there is none it is left at single bytes.
    ``training.seconds`` is also for the tokenizer and the table of examples; at least a quarter of it is left for learning.
    ``checkpoints``: directory from which a training that was stopped goes on (``checkpoint_directory``); it is removed once
    the bundle is whole, and stays if the time was up, for the steps that are left.
    The record of a model that was fine-tuned from a checkpoint says which (``BaseCheckpoint``).
    Of several processes (``models.training.processes``) the first alone adds the model.
    Raises ``SidstreamError``, the bundle as it was, for a model that cannot read its prompts and for training that ends in
    numbers that are NaN or infinite.
    """
    began = time.monotonic()
    if training.lora and model_settings.checkpoint is None and model_settings.origin is None:
        raise SidstreamError(
            "LoRA trains a checkpoint further, and a new model has nothing to keep: give --checkpoint, or no --lora"
        )
    from models.language.finite import require_finite_scores
    from models.language.language_model import save_language_model
    from models.language.lora import merged

    if len(item_ids) != len(codes):
        raise SidstreamError(f"{len(item_ids)} item ids but {len(codes)} rows of codes: they must belong together")
    manifest = bundle.manifest
    if not isinstance(data, StreamedData):
        data = TrainingData.of(data)
    tasks = _alignment(alignment, items, model_settings.read, training.seed)
    titles = _titles(items, model_settings.read)
    first = first_model(
        model_settings,
        training,
        layers=manifest.layers,
        size=manifest.size,
        texts=data.texts(),
        titles=titles.values(),
        tasks=tasks,
    )
    model, prompts, base = first.model, first.prompts, first.base
    prompts.require_slots()
    rows = {item: row for row, item in enumerate(item_ids)}
    kept = None
    if checkpoints is not None:
        facts = {
            "codebook": manifest.codebook_id,
            "layout": _digest(bundle.layout.to_dict()),
            "items": f"{len(rows):,} ({_digest([list(item_ids), codes.tobytes()])})",
            "training data": data.described(),
            "validation data": None if validation is None else validation.described(),
            "model": model_settings.described(),
            "prompt": prompts.settings.described(),
            **({"titles": _digest(titles)} if titles else {}),
            **({"alignment": f"{tasks.settings.described()} ({_digest(tasks.examples)})"} if tasks else {}),
            # The model of an origin says which it was itself.
            **({"base": base.id} if base is not None and (training.lora or model_settings.origin is None) else {}),
            **training.facts(),
        }
        kept = Checkpoints(checkpoints, facts, hint="begin anew with --anew, which removes what was learnt there")
    if training.seconds is not None:
        left = training.seconds - (time.monotonic() - began)
        training = replace(training, seconds=max(left, training.seconds / 4))
    outcome = train_model(
        model,
        data,
        prompts,
        bundle.layout,
        rows,
        codes,
        training,
        titles=titles,
        alignment=tasks,
        validation=validation,
        progress=progress,
        checkpoints=kept,
    )
    if not processes.is_first():
        return bundle, outcome
    if training.lora:
        model = merged(model)
    require_finite_scores(
        model, prompts, "the trained model", f"train again with a learning rate below {training.learning_rate:g}"
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with staging_directory(bundle) as staged:
        save_language_model(model, prompts.tokenizer, staged)
        bundle = add_language_model(
            bundle,
            staged,
            vocabulary=prompts.vocabulary,
            prompt=prompts.settings,
            layer2_dropout=training.layer2_dropout,
            training={
                "architecture": first.architecture,
                "parameters": parameters,
                "epochs": training.epochs,
                "seed": training.seed,
                "loss_function": training.loss,
                "gamma": checked_gamma(training.loss, training.gamma),
                **({"dropout": training.dropout} if training.dropout is not None else {}),
                **({"lora": training.lora} if training.lora else {}),
                "text_queries": data.asked,
                **({"alignment": tasks.settings.to_dict()} if tasks else {}),
                **outcome.to_dict(),
            },
            base=base,
        )
    if kept is not None and (outcome.steps >= outcome.planned_steps or outcome.stopped_early):
        kept.remove()
    return bundle, outcome


def _alignment(
    settings: AlignmentSettings | None, items: Sequence[CatalogueItem], prompt: PromptSettings, seed: int
) -> Alignment | None:
    """The tasks and their examples. Raises ``SidstreamError`` where the catalogue has no text for one, or prompts read none."""
    if settings is None:
        return None
    if not prompt.max_text_tokens:
        raise SidstreamError(
            "alignment tasks read and write text, and no token of a text is read: let max_text_tokens be 1 or more"
        )
    return Alignment(settings, alignment_examples(items, settings.tasks), seed)


def _titles(items: Sequence[CatalogueItem], prompt: PromptSettings) -> dict[str, str]:
    """By item id, for prompts that have them. Raises ``SidstreamError`` where no item has one."""
    if not prompt.history_text:
        return {}
    titles = {item.id: item.title for item in items if item.title.strip()}
    if not titles:
        raise SidstreamError(
            "no item of the catalogue has a title, and history_text reads them: give the items theirs, or leave it at 0"
        )
    return titles


def _digest(value: Any) -> str:
    encoded = msgspec.json.encode(value, enc_hook=str)
    return hashlib.sha256(encoded).hexdigest()[:12]
