"""What families of causal language models do each in their own way: how scores come from hidden states, and whether a token sees
what a 4-D mask says and nothing else.

What must hold: nothing is assumed of a family that can be measured of the model: scores are those of its own forward pass, and a
model whose attention (or state) goes by the order of the tokens alone is told by a probe, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from models.errors import SidstreamError
from models.language.devices import in_mode

if TYPE_CHECKING:
    import torch

TOLERANCE: Final = 1e-3  # float32 sums in another order differ by 1e-6; a mask that is not honoured, by far more
HALF_TOLERANCE: Final = 5e-2
_LOSS_TOLERANCE: Final = 1e-4
_NO_LABEL: Final = -100  # transformers' label for "no loss here"
_TRACE: Final = 1e-6
_LAST, _SHORTEST = 4, 6  # tokens that are exchanged, of so many at least
_AHEAD: Final = 1e-5  # of experts, whose sums are in the order of the tokens that they have
_WINDOW, _HALF_WINDOW = 1e-4, 1e-2  # without a window the same sums, and with one that cuts a token off 2e-3 or more
_LEAST: Final = 1e-6  # logits that a family scales down are small, and must agree as closely
# Fields of configurations by which families scale their scores, and how (Cohere, Granite, Falcon-H1, Gemma 2).
_FACTORS: Final = ("logit_scale", "lm_head_multiplier")
_DIVISORS: Final = ("logits_scaling",)
_SOFT_CAPS: Final = ("final_logit_softcapping",)
_WINDOWS: Final = ("sliding_window", "attention_chunk_size")

logger = structlog.get_logger(__name__)


def plain_model(model: Any) -> Any:
    """The causal LM itself, whatever training has wrapped around it (peft, several processes)."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def base_model(model: Any) -> Any:
    """The part of a causal LM that gives hidden states."""
    found = getattr(model, model.base_model_prefix, None)
    return model.get_decoder() if found is None else found  # Llama 4 has it by another name


def chosen_logits(model: Any, row: torch.Tensor, column: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Float32 logits (N, V) after the tokens at ``row`` and ``column`` (N,) of the forward pass with these ``inputs``.

    They are what the model itself makes of the hidden states there, scaled and capped as its family does: its forward pass goes
    on with these states alone, so that the head's work is for N tokens and not for all.
    """
    chosen = False

    def choose(module: Any, arguments: Any, output: Any) -> Any:
        nonlocal chosen
        chosen = True
        states = output[0][row, column][None]
        if isinstance(output, tuple):
            return (states, *output[1:])
        output.last_hidden_state = states
        return output

    handle = base_model(plain_model(model)).register_forward_hook(choose)
    try:
        logits: torch.Tensor = model(use_cache=False, **inputs).logits
    finally:
        handle.remove()
    # A family whose forward pass goes round its base model (OPT) has scored every token.
    return (logits[0] if chosen else logits[row, column]).float()


def score_scale(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the family does with the product of hidden states and head, by its configuration: logits → logits. Whoever uses it
    measures that it is all.
    """
    import torch

    config = model.config
    factor = 1.0
    for name in _FACTORS:
        factor *= getattr(config, name, None) or 1.0
    for name in _DIVISORS:
        factor /= getattr(config, name, None) or 1.0
    caps = [cap for name in _SOFT_CAPS if (cap := getattr(config, name, None))]

    def scale(logits: torch.Tensor) -> torch.Tensor:
        if factor != 1.0:
            logits = logits * factor
        for cap in caps:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return scale


def sees_branches(model: Any, longest: int) -> bool:
    """Whether tokens of a sequence see what a 4-D mask lets them see, and nothing else, at the positions that are given, and
    whether a prompt and its SID of ``longest`` tokens see all of themselves: then prompts that begin alike can be one sequence.

    Measured of the model: states (Mamba, convolutions) go by the order alone, and a mask would take a sliding window away that
    the search keeps.
    """
    found = _without_errors(model, _mask_is_all) and _without_errors(model, partial(_sees_whole, longest=longest))
    if not found:
        logger.info("branches_not_seen", model=type(model).__name__, longest=longest)
    return found


def shortest_window(model: Any) -> int | None:
    """How many tokens back the layer of the shortest sight sees, by the configuration; None where all see all."""
    windows = [getattr(model.config, name, None) for name in _WINDOWS]
    return min((window for window in windows if window), default=None)  # Qwen2-MoE says 0 where it has none


def require_trainable(model: Any, longest: int) -> None:
    """Raises ``SidstreamError`` for a model that would be trained for something else than it is asked for: one whose own loss is
    not what training minimises, one whose scores of a token tell what comes after it, and one that fails on ``longest`` tokens,
    those of the longest prompt and its SID. Each is asked of the model on a made batch.
    """
    import torch

    name = type(plain_model(model)).__name__
    tried, instead = "its loss of a batch of tokens fails", "give another checkpoint"
    try:
        with in_mode(model, training=False), torch.inference_mode():
            own, ours = _losses(model)
            tried = f"a forward pass on {longest} tokens, as the longest prompt has, fails"
            instead += ", or less to read (--max-history, --max-text)"
            causal = _is_causal(model, max(longest, _SHORTEST))
    except Exception as error:
        raise SidstreamError(f"{name} cannot be trained here: {tried} ({error}); {instead}") from error
    if not abs(own - ours) <= _LOSS_TOLERANCE * max(1.0, abs(own)):
        router = getattr(model.config, "output_router_logits", False)
        what_to_do = "set output_router_logits to false in its config.json" if router else "give another checkpoint"
        raise SidstreamError(
            f"{name} is not trained by the cross-entropy of its scores alone: on one batch its own loss is {own:.4f}, that of "
            f"its scores {ours:.4f}; {what_to_do}"
        )
    if not causal:
        raise SidstreamError(
            f"{name} is no causal language model as it is configured: tokens that come later change what it says of earlier "
            "ones, and it would learn to read its answers; give a checkpoint of a causal family"
        )


def _losses(model: Any) -> tuple[float, float]:
    """The model's own loss of a batch, and that of its scores."""
    import torch

    tokens = torch.randint(_rows(model), (2, 10), generator=torch.Generator().manual_seed(0)).to(model.device)
    labels = tokens.clone()
    labels[:, :6] = _NO_LABEL
    row, column = torch.nonzero(labels[:, 1:] != _NO_LABEL, as_tuple=True)
    own = float(model(input_ids=tokens, labels=labels, use_cache=False).loss)
    logits = chosen_logits(model, row, column, input_ids=tokens)
    return own, float(torch.nn.functional.cross_entropy(logits, tokens[row, column + 1]))


def _is_causal(model: Any, length: int) -> bool:
    """Whether the scores of tokens are the same before other last tokens."""
    import torch

    tokens = torch.randint(_rows(model), (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    others = tokens.clone()
    others[:, -_LAST:] = (others[:, -_LAST:] + 1) % _rows(model)
    before = torch.tensor([0, length - _LAST - 1], device=model.device)
    said, then = (chosen_logits(model, torch.zeros_like(before), before, input_ids=ids) for ids in (tokens, others))
    return agrees(then, said, _AHEAD)


def _rows(model: Any) -> int:
    return int(plain_model(model).config.vocab_size)


def branch_inputs(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``visible`` and ``positions`` of a batch as the arguments of a forward pass; empty for a batch that has none."""
    import torch

    if "visible" not in batch:
        return {}
    model = plain_model(model)
    # Additive, because eager attention adds the mask and scaled-dot-product attention takes either.
    mask = torch.zeros(batch["visible"].shape, dtype=model.dtype, device=model.device)
    mask.masked_fill_(~batch["visible"], torch.finfo(model.dtype).min)
    return {"attention_mask": mask[:, None], "position_ids": batch["positions"]}


def agrees(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two ways to the same logits differ by no more than ``tolerance``, held against the greatest of them."""
    difference = float((one.float() - other.float()).abs().max() / other.float().abs().max().clamp(min=_LEAST))
    return difference <= tolerance


def _mask_is_all(model: Any) -> bool:
    """A trunk of four tokens and two branches of two: each is as it is apart, and nothing of one reaches the other."""
    import torch

    rows = _rows(model)
    tokens = torch.randint(rows, (8,), generator=torch.Generator().manual_seed(0)).to(model.device)
    visible = torch.zeros(8, 8, dtype=torch.bool)
    visible[:6, :6] = torch.ones(6, 6).tril().bool()
    visible[6:, :4] = True
    visible[6, 6] = visible[7, 6] = visible[7, 7] = True
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5]])
    inputs = branch_inputs(model, {"visible": visible[None].to(model.device), "positions": positions.to(model.device)})

    def scores(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids[None], use_cache=False, **more).logits[0]
        return found

    tolerance = HALF_TOLERANCE if _is_half(model) else TOLERANCE
    joined = scores(tokens, **inputs)
    other = tokens.clone()
    other[4:6] = (other[4:6] + 1) % rows
    # In a new model states say little beside attention: what reaches the other branch is small, and not rounding.
    if not agrees(scores(other, **inputs)[6:], joined[6:], _TRACE):
        return False
    return all(
        agrees(joined[branch], scores(tokens[branch]), tolerance) for branch in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7])
    )


def _sees_whole(model: Any, longest: int) -> bool:
    """A sequence of ``longest`` tokens is as it is under a mask that lets each token see all before it."""
    import torch

    tokens = torch.randint(_rows(model), (1, longest), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(1, longest, longest, dtype=torch.bool).tril()
    batch = {"visible": visible, "positions": torch.arange(longest)[None]}
    inputs = branch_inputs(model, {name: part.to(model.device) for name, part in batch.items()})
    last = torch.zeros(1, dtype=torch.int64), torch.tensor([longest - 1])  # it misses the most
    own = chosen_logits(model, *last, input_ids=tokens.to(model.device))
    masked = chosen_logits(model, *last, input_ids=tokens.to(model.device), **inputs)
    return agrees(own, masked, _HALF_WINDOW if _is_half(model) else _WINDOW)


def _is_half(model: Any) -> bool:
    import torch

    return model.dtype in (torch.float16, torch.bfloat16)


def _without_errors(model: Any, probe: Callable[[Any], bool]) -> bool:
    """What the probe finds of the model as it answers queries; False where its forward pass fails."""
    import torch

    try:
        with in_mode(model, training=False), torch.inference_mode():
            return probe(model)
    except Exception as error:  # whatever a family makes of a mask that it does not know
        logger.info("branches_not_understood", model=type(model).__name__, error=str(error))
        return False
