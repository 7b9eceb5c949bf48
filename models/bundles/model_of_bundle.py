"""The language model of a bundle, ready to decode; and whether a model can read the prompts that it will get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.bundles.bundle import Bundle
from models.errors import SidstreamError
from models.language.finite import require_finite_scores, require_finite_weights
from models.language.language_model import from_pretrained
from models.language.prompts import PromptBuilder
from models.language.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch


def load_language_model(
    bundle: Bundle, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Any, PromptBuilder]:
    """The bundle's model, ready to decode (evaluation mode, on ``device``), and its prompt builder. ``dtype``: None for
    that of its weights; int8 is for the linear layers of a model on the processor.

    Raises ``SidstreamError`` for a model that does not fit its vocabulary or its prompts, and ``NotFiniteError`` for one
    whose weights or scores are NaN or infinite.
    """
    record = bundle.manifest.language_model
    path = bundle.model_directory
    assert record is not None  # model_directory has refused a bundle without a model
    model = from_pretrained(path)
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows != record.vocabulary.total:
        raise SidstreamError(
            f"the language model in {path} has {rows} embedding rows, its vocabulary needs {record.vocabulary.total}: "
            "train it again with `sidstream train`"
        )
    prompts = PromptBuilder(record.vocabulary, TextTokenizer.load(path), record.prompt)
    require_positions(model, prompts, f"the language model in {path}")
    import torch

    in_int8 = dtype is torch.int8
    model = model.to(device=device, dtype=torch.float32 if in_int8 else dtype).eval()
    source, what_to_do = f"the language model in {path}", "train it again with `sidstream train`"
    require_finite_weights(model, source, what_to_do)
    require_finite_scores(model, prompts, source, what_to_do)
    if in_int8:
        from models.language.int8 import to_int8

        to_int8(model)
    return model, prompts


def require_positions(model: Any, prompts: PromptBuilder, source: str, *, task: int = 0) -> None:
    """Refuses a model that reads fewer tokens than the longest prompt and its SID have, or the longest ``task`` beside them:
    beyond its positions a model fails or writes noise.
    """
    longest = prompts.width + prompts.vocabulary.layers
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or max(longest, task) <= positions:
        return
    if longest <= positions:
        raise SidstreamError(
            f"an alignment task has up to {task} tokens with its target, but {source} reads {positions}: train with a smaller "
            "--max-text, or with a model that reads more"
        )
    settings = prompts.settings
    an_item = prompts.vocabulary.layers + settings.history_text
    room = positions - (longest - settings.max_text_tokens - an_item * settings.max_history)
    text = min(settings.max_text_tokens, room // 2)
    history = min(settings.max_history, (room - text) // an_item)
    shorter = f"train with --max-history {history} --max-text {text}, or " if room >= 0 else "train "
    raise SidstreamError(
        f"a prompt has up to {longest} tokens with its SID ({settings.max_history} items of history, "
        f"{settings.max_text_tokens} tokens of text), but {source} reads {positions}: "
        f"{shorter}with a model that reads more"
    )
