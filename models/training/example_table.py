"""Training examples as token ids, one row each.

What must hold: prompts are those of serving (``PromptBuilder.row``), the target SID stands after them, and only its
tokens are to be predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from models.examples.records import TrainingExample
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training.tables import NOTHING_FOLLOWS, TrainingBatch


class ExampleTable:
    """All examples as one int32 table (N, width), -1 where a part is absent: prompt row, then the target's SID."""

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        prompts: PromptBuilder,
        layout: Layout,
        item_rows: Mapping[str, int],
        codes: npt.NDArray[np.uint16],
    ) -> None:
        """``item_rows``: item id → row of ``codes`` (N, L), every item of the examples among them."""
        self.vocabulary = prompts.vocabulary
        self.target_start = prompts.width
        # Stored at full length: which layer-2 tokens are left out is decided batch by batch.
        sids = codes.astype(np.int32) + layout.layer_offsets
        texts = iter(prompts.tokenizer.encode_batch([example.query for example in examples]))
        self.rows = np.full((len(examples), prompts.width + layout.layers), -1, dtype=np.int32)
        for row, example in zip(self.rows, examples, strict=True):
            history = [sids[item_rows[item]] for item in example.history]
            row[: prompts.width] = prompts.row(next(texts), history, example.user)
        targets = sids[[item_rows[example.item] for example in examples]]
        self.rows[:, prompts.width :] = self.vocabulary.token_ids(targets)
        self._is_head = layout.is_head
        self.lengths = (self.rows >= 0).sum(axis=1) - 1  # the last token of a SID is predicted, never read
        self.row_targets = np.ones(len(self.rows), dtype=np.int64)
        self.targets = len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The examples at ``indices`` (B,) as plain sequences without their last tokens, padded at the end.

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
        shape = (len(rows), int(place[:, -1].max()))
        token_ids = np.full(shape, self.vocabulary.padding_id, dtype=np.int64)
        following = np.full(shape, NOTHING_FOLLOWS, dtype=np.int64)
        row, column = np.nonzero(present[:, :-1])
        token_ids[row, place[row, column]] = rows[row, column]
        row, column = np.nonzero(present)
        is_target = column >= self.target_start
        row, column = row[is_target], column[is_target]
        following[row, place[row, column] - 1] = rows[row, column]
        return TrainingBatch(token_ids, following)
