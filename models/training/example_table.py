"""Training examples as token ids: tables from which batches are cut with array operations alone, because on a small
model Python per example would cost more than the model.

What must hold: prompts are those of serving (``PromptBuilder.row``), the target SID stands after them, and only its
tokens are to be predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training.examples import TrainingExample

NOTHING_FOLLOWS: Final = -100  # transformers' label for "no loss here"


@dataclass(frozen=True)
class TrainingBatch:
    """B sequences of T token ids.

    ``token_ids``: (B, T) int64, padded at the end; ``following``: (B, T) int64, the token to be predicted after each
    position, -100 where none is. If a sequence branches: ``positions`` (B, T) int64, each token's place in its own
    prompt, and ``visible`` (B, T, T) bool, which tokens each token sees; else both are None and attention is causal.
    """

    token_ids: npt.NDArray[np.int64]
    following: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64] | None = None
    visible: npt.NDArray[np.bool_] | None = None


class TrainingTable(Protocol):
    """What training needs: how many rows, how long each is, and batches of them.

    ``lengths``: (N,) tokens a row; ``targets``: SIDs to be predicted in all rows; ``skipped``: examples left out.
    """

    lengths: npt.NDArray[np.int64]
    targets: int
    skipped: int

    def __len__(self) -> int:
        """Rows."""

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The rows at ``indices`` (B,), each SID in its other form with probability ``layer2_dropout``."""


class ExampleTable:
    """All examples as one int32 table (N, width), -1 where a part is absent: prompt row, then the target's SID."""

    def __init__(
        self,
        examples: Iterable[TrainingExample],
        prompts: PromptBuilder,
        layout: Layout,
        item_rows: Mapping[str, int],
        codes: npt.NDArray[np.uint16],
    ) -> None:
        """``item_rows``: item id → row of ``codes`` (N, L). Unknown history items are left out, examples of unknown
        items skipped.
        """
        self.vocabulary = prompts.vocabulary
        self.target_start = prompts.width
        seen = list(examples)
        known = [example for example in seen if example.item in item_rows]
        self.skipped = len(seen) - len(known)
        if not known:
            raise SidstreamError(
                f"none of the {len(seen)} training examples names an item of the catalogue: "
                "give the examples that belong to it"
            )
        # Stored at full length: which layer-2 tokens are left out is decided batch by batch.
        sids = codes.astype(np.int32) + layout.layer_offsets
        texts = iter(prompts.tokenizer.encode_batch([example.query for example in known]))
        self.rows = np.full((len(known), prompts.width + layout.layers), -1, dtype=np.int32)
        for row, example in zip(self.rows, known, strict=True):
            history = [sids[item_rows[item]] for item in example.history if item in item_rows]
            row[: prompts.width] = prompts.row(next(texts), history, example.user)
        targets = sids[[item_rows[example.item] for example in known]]
        self.rows[:, prompts.width :] = self.vocabulary.token_ids(targets)
        self._is_head = layout.is_head
        self.lengths = (self.rows >= 0).sum(axis=1)
        self.targets = len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The examples at ``indices`` (B,) as plain sequences, padded at the end.

        Each SID has the layout's form, or with probability ``layer2_dropout`` the other one: head tokens are written
        out as often as other layer-2 tokens are left out. So neither kind of item is favoured, and a token may join
        the head set or leave it.
        """
        rows = self.rows[indices]
        middle_layer = self.vocabulary.layer_range(HEAD_LAYER_INDEX)
        at = np.nonzero((rows >= middle_layer.start) & (rows < middle_layer.stop))
        left_out = self._is_head[rows[at] - middle_layer.start]
        if layer2_dropout > 0:
            left_out = left_out ^ (random.random(len(left_out), dtype=np.float32) < layer2_dropout)
        rows[at] = np.where(left_out, -1, rows[at])
        present = rows >= 0
        place = np.cumsum(present, axis=1) - 1
        shape = (len(rows), int(place[:, -1].max()) + 1)
        token_ids = np.full(shape, self.vocabulary.padding_id, dtype=np.int64)
        following = np.full(shape, NOTHING_FOLLOWS, dtype=np.int64)
        row, column = np.nonzero(present)
        token_ids[row, place[row, column]] = rows[row, column]
        is_target = column >= self.target_start
        row, column = row[is_target], column[is_target]
        following[row, place[row, column] - 1] = rows[row, column]
        return TrainingBatch(token_ids, following)
