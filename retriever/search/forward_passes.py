"""Forward passes of a causal LM for the beam search: the prompt once a query, then one token a beam.

What must hold: ``SharedPromptPasses`` gives the logits of a plain forward pass. The prompt's keys and values exist
once a query and are never copied or re-ordered: all beams of a step are fed as *one* sequence, and a 4-D attention
mask lets each token see the prompt, its own ancestors and itself (tree attention). Whether a model honours that is
measured on its first use, not assumed; one that does not gets ``PlainPasses``, slow and right.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import structlog
import torch

from models.language.families import HALF_TOLERANCE, TOLERANCE, agrees, base_model, score_scale, shortest_window
from models.language.int8 import has_int8

logger = structlog.get_logger(__name__)


class Logits(Protocol):
    """What gives logits for the states of its passes."""

    def logits(self, state: torch.Tensor, rows: slice) -> torch.Tensor:
        """Float32 logits (B, K, rows) over a slice of the vocabulary."""


class ForwardPasses(Logits, Protocol):
    """B queries, K beams each. A *state* is what ``logits`` needs; its first two dimensions are (B, K)."""

    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """Runs B prompts (token ids); state (B, 1, …) after each prompt's last token."""

    def advance(self, token_ids: npt.NDArray[np.int64], parents: npt.NDArray[np.int64]) -> torch.Tensor:
        """Feeds one token a beam: ``token_ids`` and ``parents`` (B, K); ``parents`` number the beams of the call
        before.
        """

    def mark(self) -> Any:
        """A place in the tree to which ``rewind`` comes back, as often as one likes; it costs no copy."""

    def rewind(self, mark: Any, queries: npt.NDArray[np.intp]) -> None:
        """As if the last call were the one before ``mark``, with these of its queries (B',) alone."""


class SharedPromptPasses:
    """Tree attention over one KV cache a query; for models whose attention takes a 4-D additive mask."""

    def __init__(self, model: Any) -> None:
        self._base = base_model(model)
        self._head = model.get_output_embeddings()
        self._scale = score_scale(model)
        self._device = model.device
        self._cache: Any = None
        self._visible = torch.empty(0)
        self._positions = torch.empty(0)

    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """See ``ForwardPasses``. Prompts of unequal length are padded on the left."""
        from transformers import DynamicCache

        longest = max(len(prompt) for prompt in prompts)
        token_ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        real = torch.zeros((len(prompts), longest), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            token_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            real[row, longest - len(prompt) :] = True
        lengths = real.sum(dim=1, keepdim=True)
        positions = (torch.arange(longest)[None, :] - (longest - lengths)).clamp(min=0)
        # A plain cache: one built from the configuration would cut layers with a sliding window.
        self._cache = DynamicCache()
        padded = any(len(prompt) != longest for prompt in prompts)
        output = self._base(
            input_ids=token_ids.to(self._device),
            attention_mask=real.long().to(self._device) if padded else None,
            position_ids=positions.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._visible = real[:, None, :].to(self._device)  # (B, K of the last call, keys so far)
        self._positions = lengths.to(self._device)
        state: torch.Tensor = output.last_hidden_state[:, -1:, :]
        return state

    def advance(self, token_ids: npt.NDArray[np.int64], parents: npt.NDArray[np.int64]) -> torch.Tensor:
        """See ``ForwardPasses``."""
        queries, beams = token_ids.shape
        tokens = torch.from_numpy(token_ids).to(self._device)
        parent = torch.from_numpy(parents).to(self._device)
        inherited = self._visible.gather(1, parent[:, :, None].expand(-1, -1, self._visible.shape[2]))
        itself = torch.eye(beams, dtype=torch.bool, device=self._device).expand(queries, -1, -1)
        self._visible = torch.cat((inherited, itself), dim=2)
        # Additive, because eager attention adds the mask and scaled-dot-product attention takes either.
        dtype = self._head.weight.dtype
        mask = torch.zeros(self._visible.shape, dtype=dtype, device=self._device)
        mask.masked_fill_(~self._visible, torch.finfo(dtype).min)
        output = self._base(
            input_ids=tokens,
            attention_mask=mask[:, None, :, :],
            position_ids=self._positions.expand(-1, beams),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        state: torch.Tensor = output.last_hidden_state
        return state

    def mark(self) -> Any:
        """See ``ForwardPasses``. The cache's tensors are replaced when it grows, so these stay as they are."""
        return [(layer.keys, layer.values) for layer in self._cache.layers], self._visible, self._positions

    def rewind(self, mark: Any, queries: npt.NDArray[np.intp]) -> None:
        """See ``ForwardPasses``."""
        from transformers import DynamicCache

        layers, visible, positions = mark
        rows = torch.from_numpy(queries).to(self._device)
        self._cache = DynamicCache()
        for layer, (keys, values) in enumerate(layers):
            self._cache.update(keys[rows], values[rows], layer)
        self._visible, self._positions = visible[rows], positions[rows]

    def logits(self, state: torch.Tensor, rows: slice) -> torch.Tensor:
        """See ``ForwardPasses``; only these rows of ``lm_head`` are multiplied, and scaled as the model's family does."""
        bias = getattr(self._head, "bias", None)
        product = torch.nn.functional.linear(state, self._head.weight[rows], None if bias is None else bias[rows])
        return self._scale(product).float()


class PlainPasses:
    """Runs prompt and beams anew each step, one query at a time, without cache, mask or padding: right for any causal
    LM.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = model.device
        self._sequences: list[torch.Tensor] = []

    def start(self, prompts: list[list[int]]) -> torch.Tensor:
        """See ``ForwardPasses``."""
        self._sequences = [torch.tensor([prompt], device=self._device) for prompt in prompts]
        return self._run()

    def advance(self, token_ids: npt.NDArray[np.int64], parents: npt.NDArray[np.int64]) -> torch.Tensor:
        """See ``ForwardPasses``."""
        tokens, parent = torch.from_numpy(token_ids).to(self._device), torch.from_numpy(parents).to(self._device)
        self._sequences = [
            torch.cat((sequences[parent[query]], tokens[query][:, None]), dim=1)
            for query, sequences in enumerate(self._sequences)
        ]
        return self._run()

    def mark(self) -> Any:
        """See ``ForwardPasses``."""
        return self._sequences

    def rewind(self, mark: Any, queries: npt.NDArray[np.intp]) -> None:
        """See ``ForwardPasses``."""
        self._sequences = [mark[query] for query in queries.tolist()]

    def _run(self) -> torch.Tensor:
        return torch.stack(
            [self._model(input_ids=sequences, use_cache=False).logits[:, -1, :] for sequences in self._sequences]
        )

    def logits(self, state: torch.Tensor, rows: slice) -> torch.Tensor:
        """See ``ForwardPasses``."""
        return state[:, :, rows].float()


_shares_prompt: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def forward_passes(model: Any, longest: int) -> ForwardPasses:
    """The fast passes if this model gives the same logits with them (measured once a model), else the plain ones.

    ``longest``: tokens of the longest prompt and a SID together; a sliding window shorter than that needs the plain
    passes.
    """
    if model not in _shares_prompt:
        _shares_prompt[model] = honours_tree_attention(model)
        if not _shares_prompt[model]:
            logger.warning(
                "slow_decoding", model=type(model).__name__, reason="4-D attention masks are not honoured by this model"
            )
    window = shortest_window(model)
    if _shares_prompt[model] and (window is None or longest < window):
        return SharedPromptPasses(model)
    return PlainPasses(model)


def tolerance_of(model: Any) -> float:
    """How far two ways to the same logits of this model may be apart."""
    rounds = next(model.parameters()).dtype in (torch.float16, torch.bfloat16) or has_int8(model)
    return HALF_TOLERANCE if rounds else TOLERANCE


def honours_tree_attention(model: Any) -> bool:
    """Compares both kinds of passes on two short prompts of unequal length with a few beams."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    random = np.random.default_rng(0)
    prompts = [random.integers(rows, size=length).tolist() for length in (3, 5)]
    steps = [
        (random.integers(rows, size=(2, 3)), np.array([[0, 0, 0], [0, 0, 0]])),
        (random.integers(rows, size=(2, 2)), np.array([[2, 0], [1, 1]])),
    ]
    shared, plain = SharedPromptPasses(model), PlainPasses(model)
    everything = slice(0, rows)

    tolerance = tolerance_of(model)

    def same(states: tuple[torch.Tensor, torch.Tensor]) -> bool:
        return agrees(shared.logits(states[0], everything), plain.logits(states[1], everything), tolerance)

    try:
        with torch.inference_mode():
            if not same((shared.start(prompts), plain.start(prompts))):
                return False
            return all(
                same((shared.advance(token_ids, parents), plain.advance(token_ids, parents)))
                for token_ids, parents in steps
            )
    except Exception as error:  # whatever a family makes of a cache or a mask that it does not know
        logger.info("tree_attention_probe_failed", model=type(model).__name__, error=str(error))
        return False
