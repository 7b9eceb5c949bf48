"""Training examples as token ids, one row each: those of queries and histories, and those of alignment tasks.

What must hold: prompts are those of serving (``PromptBuilder.row``), the target stands after them, and only its tokens are to be
predicted: a SID's, or a title's where a task asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from models.examples.alignment import AlignmentExample
from models.examples.records import TrainingExample
from models.language.instruction import AlignmentTask, task_instruction
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.training.tables import NOTHING_FOLLOWS, TrainingBatch


class _RowTable:
    """``rows`` int32 (N, width), -1 where a part is absent: a prompt up to ``target_start``, then its target."""

    def __init__(self, rows: npt.NDArray[np.int32], target_start: int, prompts: PromptBuilder, layout: Layout) -> None:
        self.rows = rows
        self.target_start = target_start
        self.vocabulary = prompts.vocabulary
        self._is_head = layout.is_head
        self.lengths = (self.rows >= 0).sum(axis=1) - 1  # the last token of a target is predicted, never read
        self.row_targets = np.ones(len(self.rows), dtype=np.int64)
        self.targets = len(self.rows)

    def __len__(self) -> int:
        return len(self.row_targets)

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
        is_read = place[row, column] < shape[1]
        row, column = row[is_read], column[is_read]
        token_ids[row, place[row, column]] = rows[row, column]
        row, column = np.nonzero(present)
        is_target = column >= self.target_start
        row, column = row[is_target], column[is_target]
        following[row, place[row, column] - 1] = rows[row, column]
        return TrainingBatch(token_ids, following)


class ExampleTable(_RowTable):
    """All examples as one table: prompt row, then the target's SID."""

    def __init__(
        self,
        examples: Sequence[TrainingExample],
        prompts: PromptBuilder,
        layout: Layout,
        item_rows: Mapping[str, int],
        codes: npt.NDArray[np.uint16],
        title_ids: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """``item_rows``: item id → row of ``codes`` (N, L), every item of the examples among them; ``title_ids``: (N, T) tokens
        of their titles for histories (``PromptBuilder.title_ids``), None for prompts without.
        """
        # Stored at full length: which layer-2 tokens are left out is decided batch by batch.
        sids = codes.astype(np.int32) + layout.layer_offsets
        different = list(dict.fromkeys(example.query for example in examples))
        texts = dict(zip(different, prompts.tokenizer.encode_batch(different), strict=True))
        rows = np.full((len(examples), prompts.width + layout.layers), -1, dtype=np.int32)
        for row, example in zip(rows, examples, strict=True):
            history = [item_rows[item] for item in example.history]
            titles = None if title_ids is None else title_ids[history]
            row[: prompts.width] = prompts.row(texts[example.query], sids[history], example.user, titles)
        targets = sids[[item_rows[example.item] for example in examples]]
        rows[:, prompts.width :] = prompts.vocabulary.token_ids(targets)
        super().__init__(rows, prompts.width, prompts, layout)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The rows without their gaps: how many tokens each has (N,), all tokens one after the other, and their columns."""
        present = self.rows >= 0
        column = np.nonzero(present)[1].astype(np.uint16)
        return {"count": present.sum(axis=1, dtype=np.int32), "token": self.rows[present], "column": column}

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        prompts: PromptBuilder,
        layout: Layout,
        codes: npt.NDArray[np.uint16],
        title_ids: npt.NDArray[np.int32] | None = None,
    ) -> Self:
        """The table that gave ``arrays``."""
        rows = np.full((len(arrays["count"]), prompts.width + layout.layers), -1, dtype=np.int32)
        rows[np.repeat(np.arange(len(rows)), arrays["count"]), arrays["column"]] = arrays["token"]
        table = cls.__new__(cls)
        _RowTable.__init__(table, rows, prompts.width, prompts, layout)
        return table


_MOST_CHOICES: Final = 64  # of one place; more than training has passes


class AlignmentTable(_RowTable):
    """Alignment tasks as ``targets`` places a pass, spread evenly over their examples: where there are more of these, each place
    stands for several, one of which is drawn whenever it is learnt.
    """

    def __init__(
        self,
        examples: Sequence[AlignmentExample],
        prompts: PromptBuilder,
        layout: Layout,
        item_rows: Mapping[str, int],
        codes: npt.NDArray[np.uint16],
        *,
        targets: int,
        seed: int,
    ) -> None:
        """``prompts``: those of the model, beside which the tasks stand; other arguments as in ``ExampleTable``."""
        sids = codes.astype(np.int32) + layout.layer_offsets
        most = prompts.settings.max_text_tokens
        texts = [ids[:most] for ids in prompts.tokenizer.encode_batch([example.text for example in examples])]
        builders = {task: task_prompts(prompts, task) for task in dict.fromkeys(example.task for example in examples)}
        start = max(builder.width for builder in builders.values())
        rows = np.full((len(examples), start + max(layout.layers, most)), -1, dtype=np.int32)
        for row, example, text in zip(rows, examples, texts, strict=True):
            builder, sid = builders[example.task], sids[item_rows[example.item]]
            if example.task == "sid-to-title":
                prompt = builder.row((), sid[None])
                prompt[prompt == prompts.vocabulary.separator_id] = -1  # no SID follows
                row[start : start + len(text)] = text
            else:
                prompt = builder.row(text)
                row[start : start + layout.layers] = prompts.vocabulary.token_ids(sid)
            row[: len(prompt)] = prompt
        super().__init__(rows, start, prompts, layout)
        order = np.random.default_rng(seed).permutation(len(examples))
        choices = min(_MOST_CHOICES, -(-len(examples) // targets))
        # Places × choices: the same choice of neighbouring places are neighbours in the order, so that none is there twice.
        self._choices = order[(np.arange(targets)[:, None] + targets * np.arange(choices)) % len(examples)]
        self.lengths = self.lengths[self._choices].max(axis=1)
        self.row_targets = np.ones(targets, dtype=np.int64)
        self.targets = targets

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The tasks at ``indices`` (B,), one of each place's choices; else as for examples."""
        choices = self._choices[indices]
        drawn = random.integers(choices.shape[1], size=len(choices))
        return super().batch(choices[np.arange(len(choices)), drawn], layer2_dropout, random)


def task_prompts(prompts: PromptBuilder, task: AlignmentTask) -> PromptBuilder:
    """The prompts of an alignment task, bare or with words as ``prompts`` are."""
    frame = prompts.tokenizer.chat_frame if prompts.settings.instruction else None
    instruction = task_instruction(task, bare=not prompts.settings.instruction, frame=frame)
    slots = {part.slot for part in instruction}
    settings = msgspec.structs.replace(
        prompts.settings,
        max_history=int("history" in slots),
        max_text_tokens=prompts.settings.max_text_tokens if "query" in slots else 0,
        query_codes=False,
        history_text=0,
        instruction=instruction,
    )
    return PromptBuilder(prompts.vocabulary, prompts.tokenizer, settings)
