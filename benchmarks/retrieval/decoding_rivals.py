"""What a search is held against: transformers' constrained ``generate`` and bare forward passes, on the model's own device.

The bare forward passes are what no search can do without: the prompt once, then the beams of a query with a cache of as many
copies of the prompt, once a further layer, each with the logits of the whole vocabulary; no constraint, no choice of beams, no
re-ordering of the cache. ``bare_shared`` has the shape of ours: one cache a query, its beams one sequence under a tree mask.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import SharedPromptPasses
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter

CODEBOOK = "0123456789abcdef"


def crowded_codes(items: int, size: int, random: np.random.Generator) -> NDArray[np.uint16]:
    """Codes (items, 3) with the crowded middle layer of a real catalogue (Gini about 0.65)."""
    weights = 1.0 / np.arange(1, size + 1) ** 0.9
    codes = np.stack(
        [
            random.integers(size, size=items),
            random.choice(size, p=weights / weights.sum(), size=items),
            random.integers(size, size=items),
        ],
        axis=1,
    )
    return codes.astype(np.uint16)


@contextmanager
def snapshot_of(codes: NDArray[np.uint16], size: int) -> Iterator[Snapshot]:
    """A snapshot of an index of items with these codes, in a folder that is removed afterwards."""
    count, layers = codes.shape
    with tempfile.TemporaryDirectory() as directory:
        with IndexWriter.open(Path(directory), codebook_id=CODEBOOK, layers=layers, size=size) as writer:
            writer.apply(
                CodesBatch(
                    ids=[f"item-{row}".encode() for row in range(count)],
                    codes=codes,
                    weights=np.ones(count, dtype=np.float32),
                    titles=[""] * count,
                    updated_at=np.zeros(count, dtype=np.int64),
                    deleted=np.zeros(count, dtype=bool),
                ),
                {},
            )
        with IndexReader(directory) as reader, reader.snapshot() as snapshot:
            yield snapshot


class Rivals:
    """``generate`` and bare passes of one model over full-length SIDs of one catalogue; prompts of a batch have one length."""

    def __init__(self, model: Any, vocabulary: SidVocabulary, codes: NDArray[np.uint16], beams: int) -> None:
        """``codes``: (R, L) of the items."""
        self._model, self._vocabulary, self._beams = model, vocabulary, beams
        self._children: dict[tuple[int, ...], list[int]] = {}
        plain = Layout(1, CODEBOOK, vocabulary.layers, vocabulary.size, ())
        for sid in np.unique(plain.sid_tokens(codes), axis=0).tolist():
            for depth, token in enumerate(sid):
                below = self._children.setdefault(tuple(sid[:depth]), [])
                if not below or below[-1] != token + vocabulary.sid_base:
                    below.append(token + vocabulary.sid_base)

    def generate(self, batch: list[list[int]]) -> Any:
        """The best SIDs of each prompt by transformers' constrained beam search."""
        length = len(batch[0])

        def allowed(_: int, sequence: Any) -> list[int]:
            return self._children[tuple((sequence[length:] - self._vocabulary.sid_base).tolist())]

        with torch.inference_mode():
            return self._model.generate(
                input_ids=self._tokens(batch),
                attention_mask=torch.ones((len(batch), length), dtype=torch.long, device=self._model.device),
                num_beams=self._beams,
                num_return_sequences=self._beams,
                max_new_tokens=self._vocabulary.layers,
                length_penalty=0.0,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
                pad_token_id=self._vocabulary.padding_id,
            )

    def bare(self, batch: list[list[int]]) -> None:
        """The passes with a copy of the prompt's cache for each beam."""
        with torch.inference_mode():
            cache = transformers.DynamicCache()
            self._model(input_ids=self._tokens(batch), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(self._beams)
            tokens = torch.zeros((len(batch) * self._beams, 1), dtype=torch.long, device=self._model.device)
            for _ in range(self._vocabulary.layers - 1):
                self._model(input_ids=tokens, past_key_values=cache, use_cache=True)

    def bare_shared(self, batch: list[list[int]]) -> None:
        """The passes with one cache a query."""
        with torch.inference_mode():
            passes = SharedPromptPasses(self._model)
            everything = slice(0, self._vocabulary.total)
            passes.logits(passes.start(batch), everything)
            zeros = np.zeros((len(batch), self._beams), dtype=np.int64)
            for _ in range(self._vocabulary.layers - 1):
                passes.logits(passes.advance(zeros, zeros), everything)

    def _tokens(self, batch: list[list[int]]) -> torch.Tensor:
        return torch.tensor(batch, device=self._model.device)


def in_batches(work: Callable[[list[list[int]]], object], prompts: list[list[int]], size: int) -> Callable[[], None]:
    """``work`` on all prompts, as many at a time as the retriever decodes together."""

    def call() -> None:
        for begin in range(0, len(prompts), size):
            work(prompts[begin : begin + size])

    return call
