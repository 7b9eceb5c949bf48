"""LoRA (Hu et al. 2022) by ``peft``: low-rank updates of all linear layers; rows of user, control and SID tokens in full.

What must hold: after training the updates are merged, a bundle holds a plain model, and whoever loads it needs no peft.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

from models.errors import SidstreamError
from models.sids.vocabulary import SidVocabulary

_ADAPTER: Final = "adapter_model.safetensors"


def add_lora(model: Any, rank: int, vocabulary: SidVocabulary, dropout: float = 0.0, seed: int = 0) -> Any:
    """The causal LM with updates of this rank (α = 2 · rank), of which alone training will change anything, and the rows of the
    embedding (and of the head, where that is another) that the checkpoint did not have. ``dropout``: of what the updates read;
    ``seed``: of their first numbers.

    Raises ``SidstreamError`` for a family whose layers peft does not know.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    fresh = list(range(vocabulary.text_size, vocabulary.total))
    parts = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    names = {id(module): name for name, module in model.named_modules()}
    configuration = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
        trainable_token_indices={names[id(part)]: fresh for part in parts},
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of layouts of weights, which peft sets right by itself
            torch.manual_seed(seed)
            return get_peft_model(model, configuration)
    except (ValueError, TypeError, AttributeError) as error:
        raise SidstreamError(
            f"peft cannot add LoRA to {type(model).__name__} ({error}): train without --lora"
        ) from error


def merged(model: Any) -> Any:
    """A plain causal LM with the updates in its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.merge_and_unload()


def load_weights(model: Any, directory: Path) -> None:
    """What Trainer's checkpoint in ``directory`` holds of the model, all of it or its updates alone, into the model."""
    if (directory / _ADAPTER).is_file():
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(directory)))
        return
    from safetensors.torch import load_model

    load_model(model, str(directory / "model.safetensors"))
