"""Forward passes of fixed shapes over buffers that stay where they are: what a CUDA graph needs, and no allocation a step.

What must hold: the logits are those of ``SharedPromptPasses``, whatever stands in the places that pad prompts and beams. The
cache of a query has room for its padded prompt and all beams of every step; a step reads no more than what is written by then.
"""

from __future__ import annotations

from typing import Any

import torch

from models.language.families import base_model, score_scale


class StaticPasses:
    """Tree attention over one static KV cache a query: B queries, prompts padded to L tokens, K beams a step."""

    def __init__(self, model: Any, queries: int, length: int, beams: int, steps: int) -> None:
        """Memory for ``steps`` calls of ``advance`` is taken at the first pass."""
        self._base = base_model(model)
        self._head = model.get_output_embeddings()
        self._scale = score_scale(model)
        self._device = model.device
        self._shape = queries, length, beams
        self._room = length + steps * beams
        layers = int(model.config.get_text_config().num_hidden_layers)
        self._cache = static_cache(layers, self._room)
        self._visible = torch.empty(0)
        self._positions = torch.empty(0)

    def start(self, token_ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Runs prompts: token ids (B, L) padded on the left, and where they are real (B, L). State (B, 1, …)."""
        for layer in self._cache.layers:
            layer.written = 0
        length = self._shape[1]
        lengths = real.sum(dim=1, keepdim=True)
        positions = (torch.arange(length, device=self._device)[None, :] - (length - lengths)).clamp(min=0)
        itself = torch.eye(length, dtype=torch.bool, device=self._device)
        causal = torch.ones((length, length), dtype=torch.bool, device=self._device).tril()
        # A place that pads sees itself, so that no row of the softmax is empty.
        state = self._pass(token_ids, (causal & real[:, None, :]) | itself, positions)
        self._visible, self._positions = real[:, None, :], lengths
        return state[:, -1:, :]

    def advance(self, token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Feeds one token a beam, (B, K) each; ``parents`` number the beams of the call before. State (B, K, …)."""
        queries, _, beams = self._shape
        inherited = self._visible.gather(1, parents[:, :, None].expand(-1, -1, self._visible.shape[2]))
        itself = torch.eye(beams, dtype=torch.bool, device=self._device).expand(queries, -1, -1)
        self._visible = torch.cat((inherited, itself), dim=2)
        state = self._pass(token_ids, self._visible, self._positions.expand(-1, beams))
        self._positions = self._positions + 1
        return state

    def logits(self, state: torch.Tensor, rows: slice) -> torch.Tensor:
        """Float32 logits (B, K, rows) over a slice of the vocabulary."""
        bias = getattr(self._head, "bias", None)
        product = torch.nn.functional.linear(state, self._head.weight[rows], None if bias is None else bias[rows])
        return self._scale(product).float()

    def _pass(self, token_ids: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        dtype = self._head.weight.dtype
        # Additive, because eager attention adds the mask and scaled-dot-product attention takes either.
        mask = torch.zeros(visible.shape, dtype=dtype, device=self._device)
        mask = mask.masked_fill(~visible, torch.finfo(dtype).min)
        output = self._base(
            input_ids=token_ids,
            attention_mask=mask[:, None, :, :],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        state: torch.Tensor = output.last_hidden_state
        return state


def static_cache(layers: int, room: int) -> Any:
    """A cache of transformers' whose layers write into ``room`` places, from the first on."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    class Layer(CacheLayerMixin):  # type: ignore[misc]
        """Where a call writes is known when it is made: no tensor tells it, and a call reads what is written alone."""

        is_sliding = False

        def __init__(self) -> None:
            super().__init__()
            self.written = 0

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            self.keys, self.values = (
                torch.empty((*states.shape[:2], room, states.shape[-1]), dtype=states.dtype, device=states.device)
                for states in (key_states, value_states)
            )
            self.is_initialized = True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            begin, self.written = self.written, self.written + key_states.shape[-2]
            self.keys[:, :, begin : self.written].copy_(key_states)
            self.values[:, :, begin : self.written].copy_(value_states)
            return self.keys[:, :, : self.written], self.values[:, :, : self.written]

        def get_seq_length(self) -> int:
            return self.written

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.written + query_length, 0

        def get_max_length(self) -> int:
            return room

    return Cache(layers=[Layer() for _ in range(layers)])
