"""A model whose linear layers multiply int8 on the processor: several times as fast as float32, and a quarter of the memory.

What must hold: what a token gets does not depend on the tokens that are run beside it, so every token has a scale of its own, and
every output channel of a weight. Embeddings, attention, norms and the head stay float32. Inputs wider than the hidden state, of
the projections back to it, spread the most: they are taken as two int8 numbers, a coarse and a fine one, which is 16 bits.
Whether the model's scores are still its own, and whether its processor is faster in int8, is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import torch

from models.errors import SidstreamError
from models.language.families import agrees, base_model

logger = structlog.get_logger(__name__)

_GREATEST: Final = 127
_FINER: Final = 2 * _GREATEST  # what rounding leaves, half a step at the most, as steps of its own
_LEAST_SCALE: Final = 1e-12
_LEAST_FEATURES: Final = 16  # routers and gates of a few numbers: nothing to win, and every choice hangs on them
_TOLERANCE: Final = 0.1  # against the greatest score: tiny random models differ by 0.02
_PROBE_TOKENS: Final = 32


class Int8Linear(torch.nn.Module):
    """A linear layer with int8 weights, (…, in) float32 → (…, out) float32."""

    def __init__(self, linear: torch.nn.Linear, *, fine: bool) -> None:
        """``fine``: inputs of 16 bits instead of 8."""
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=_LEAST_SCALE) / _GREATEST
        self.in_features, self.out_features, self.fine = linear.in_features, linear.out_features, fine
        self.int8: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("int8", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else torch.nn.Parameter(linear.bias.detach().float(), False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs rounded token by token, multiplied as integers, and scaled back."""
        rows = inputs.reshape(-1, self.in_features)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=_LEAST_SCALE) / _GREATEST
        steps = rows / scale
        coarse = steps.round()
        product = torch._int_mm(coarse.to(torch.int8), self.int8).float()
        if self.fine:
            rest = ((steps - coarse) * _FINER).round().clamp(-_GREATEST, _GREATEST)
            product += torch._int_mm(rest.to(torch.int8), self.int8).float() / _FINER
        product *= scale
        product *= self.scale
        if self.bias is not None:
            product += self.bias
        return product.reshape(*inputs.shape[:-1], self.out_features)


def to_int8(model: Any) -> None:
    """Changes the linear layers of a float32 model on the processor, in place.

    Raises ``SidstreamError`` for a model elsewhere, for one without such layers, and for one whose scores become others.
    """
    if model.device.type != "cpu":
        raise SidstreamError(
            f"retriever.dtype is int8, which is for the processor, and the model runs on {model.device}: set it to bfloat16"
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(rows, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(input_ids=tokens, use_cache=False).logits
    changed = _replace(base_model(model), hidden=int(model.get_input_embeddings().weight.shape[1]))
    if not changed:
        raise SidstreamError(
            f"retriever.dtype is int8, but {type(model).__name__} has no linear layers of the kind that is changed: set it to "
            "bfloat16"
        )
    with torch.inference_mode():
        same = agrees(model(input_ids=tokens, use_cache=False).logits, before, _TOLERANCE)
    if not same:
        raise SidstreamError(
            f"retriever.dtype is int8, in which the scores of this {type(model).__name__} are others: set it to bfloat16"
        )
    slower = _seconds_against_float32()
    if slower >= 1:
        logger.warning("int8_does_not_pay", times_float32=round(slower, 2), advice="set retriever.dtype to float32")


def has_int8(model: Any) -> bool:
    """Whether ``to_int8`` has changed this model."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def _replace(parent: torch.nn.Module, hidden: int) -> int:
    """How many layers were changed below ``parent``."""
    changed = 0
    for name, module in list(parent.named_children()):
        if type(module) is not torch.nn.Linear:
            changed += _replace(module, hidden)
        elif min(module.in_features, module.out_features) >= _LEAST_FEATURES:
            setattr(parent, name, Int8Linear(module, fine=module.in_features > hidden))
            changed += 1
    return changed


def _seconds_against_float32(tokens: int = 64, width: int = 768) -> float:
    """What a product takes in int8, as a multiple of float32: below 1 where the processor has instructions for it."""
    linear = torch.nn.Linear(width, width, bias=False)
    changed, inputs = Int8Linear(linear, fine=False), torch.randn(tokens, width)

    def best(call: Callable[[torch.Tensor], torch.Tensor]) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            call(inputs)
            times.append(time.perf_counter() - begin)
        return min(times)

    with torch.inference_mode():
        return best(changed) / best(linear)
