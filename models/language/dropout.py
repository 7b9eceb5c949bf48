"""Dropout of a causal LM that is built already, by the fields that its family's configuration has for it.

What must hold: a rate that is asked for acts, which is measured and not believed of a field's name, or is refused; evaluation
never drops anything.
"""

from __future__ import annotations

from typing import Any, Final

import structlog

from models.errors import SidstreamError
from models.language.devices import in_mode
from models.language.families import agrees, plain_model

# Of attention and of hidden states, as families name them. Not those of classifiers, and not LayerDrop, which leaves out layers.
FIELDS: Final = (
    "attention_dropout",
    "attn_pdrop",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "hidden_dropout_prob",
    "activation_dropout",
    "dropout",
    "resid_pdrop",
    "resid_dropout",
    "residual_dropout",
    "mlp_dropout",
    "embd_pdrop",
    "emb_pdrop",
    "embed_dropout",
    "embedding_dropout",
)
_TRACE: Final = 1e-6
_RATE_OF_PROBE: Final = 0.5  # so that a short batch shows it

logger = structlog.get_logger(__name__)


def set_dropout(model: Any, rate: float, *, lora: bool = False) -> tuple[str, ...]:
    """Sets all fields that the family has, and what its layers have taken from them; returns their names.

    ``lora``: the model's updates have dropout of their own (``add_lora``), so that a family without a field is none to refuse.
    Raises ``SidstreamError`` for a rate above 0 where the family has no field, or none that its forward pass heeds.
    """
    own = plain_model(model)
    fields = tuple(name for name in FIELDS if _is_number(getattr(own.config, name, None)))
    if rate > 0 and not lora:
        _set(own, fields, _RATE_OF_PROBE)
        if not fields or not _acts(own):
            what = f"its forward pass heeds none of {', '.join(fields)}" if fields else "its configuration has no field"
            raise SidstreamError(
                f"{type(own).__name__} ({own.config.model_type}) has no dropout: {what}; train it without dropout, by "
                "LoRA, whose updates have one, or with more weight decay"
            )
    _set(own, fields, rate)
    logger.info("dropout_set", rate=rate, fields=fields)
    return fields


def _set(model: Any, fields: tuple[str, ...], rate: float) -> None:
    import torch

    for name in fields:
        setattr(model.config, name, rate)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        for name in fields:
            if _is_number(getattr(module, name, None)):
                setattr(module, name, rate)


def _acts(model: Any) -> bool:
    """Whether two forward passes in training mode differ."""
    import torch

    tokens = torch.randint(int(model.config.vocab_size), (2, 10), generator=torch.Generator().manual_seed(0))
    scores = []
    for seed in (0, 1):
        with in_mode(model, training=True), torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            scores.append(model(input_ids=tokens.to(model.device), use_cache=False).logits)
    return not agrees(scores[0], scores[1], _TRACE)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
