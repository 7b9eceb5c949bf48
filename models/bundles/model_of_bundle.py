"""The language model of a bundle, ready to decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.bundles.bundle import Bundle
from models.errors import SidstreamError
from models.language.prompts import PromptBuilder
from models.language.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch
from models.language.language_model import from_pretrained


def load_language_model(
    bundle: Bundle, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Any, PromptBuilder]:
    """The bundle's model, ready to decode (evaluation mode, on ``device``), and its prompt builder."""
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
    # The longest query and the SID after it; beyond its positions a model fails or writes noise.
    longest, positions = (
        prompts.width + record.vocabulary.layers,
        getattr(model.config, "max_position_embeddings", None),
    )
    if positions is not None and longest > positions:
        raise SidstreamError(
            f"a prompt of the language model in {path} has up to {longest} tokens with its SID, but the model reads {positions}: "
            "train it again with a shorter history or text, or with more positions"
        )
    model = model.to(device=device) if dtype is None else model.to(device=device, dtype=dtype)
    return model.eval(), prompts
