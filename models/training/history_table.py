"""Whole histories as training rows: each has many targets, and the history is run once for all of them.

What must hold: the loss is that of one example a target, each with the prompt of serving (``PromptBuilder``: head, history, tail,
separator); only the work is shared. A row is a trunk, ``head SID SID …`` (titles behind the SIDs where prompts have them), and
behind it one branch a target, ``tail separator c1 c2 …``, that sees the trunk up to its own place and itself
(``TrainingBatch.visible``). For histories of n items that is about 2 n SIDs a row, where separate examples would be n² / 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.language.prompts import PromptBuilder
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.sids.vocabulary import SidVocabulary
from models.training.tables import NOTHING_FOLLOWS, TrainingBatch


@dataclass(frozen=True)
class _Tokens:
    """Tokens of B sequences, int64 (B, T) each; branches before they are joined to their trunk (B, branches, T).

    ``token_id``: -1 for none; ``following``: the token to be predicted next, or that nothing follows; ``position``: place in
    the token's own prompt; ``branch``: its number, 0 for the trunk; ``seen_of_trunk``: how many tokens of the trunk it sees,
    from the first: up to itself in the trunk, all before the branch in a branch.
    """

    token_id: npt.NDArray[np.int64]
    following: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    branch: npt.NDArray[np.int64]
    seen_of_trunk: npt.NDArray[np.int64]

    def with_branches(self, branches: _Tokens) -> _Tokens:
        """The trunk, then the branches one after the other."""
        rows = len(self.token_id)
        return _Tokens(
            *(
                np.concatenate((getattr(self, part.name), getattr(branches, part.name).reshape(rows, -1)), axis=1)
                for part in fields(self)
            )
        )

    def without_gaps(self) -> _Tokens:
        """The tokens that are there first, in their order, and no longer than the longest sequence."""
        present = self.token_id >= 0
        order = np.argsort(~present, axis=1, kind="stable")[:, : int(present.sum(axis=1).max())]
        return _Tokens(*(np.take_along_axis(getattr(self, part.name), order, axis=1) for part in fields(self)))

    def visible(self) -> npt.NDArray[np.bool_]:
        """(B, T, T): which tokens each token sees."""
        present = self.token_id >= 0
        in_trunk = (self.branch == 0) & present
        visible: npt.NDArray[np.bool_] = in_trunk[:, None, :] & (
            self.position[:, None, :] < self.seen_of_trunk[:, :, None]
        )
        same_branch = (self.branch[:, :, None] == self.branch[:, None, :]) & (self.branch > 0)[:, None, :]
        visible |= same_branch & present[:, None, :] & (self.position[:, None, :] <= self.position[:, :, None])
        visible |= np.eye(present.shape[1], dtype=bool)  # padding sees itself: a row of nothing would be NaN
        return visible


class HistoryTable:
    """Histories as rows of items (N, W), -1 where a history is shorter.

    A history longer than ``max_history`` + 1 is cut into windows that overlap by half: each of its targets stands in one
    of them, with at least half of ``max_history`` items before it if so many came before.
    """

    def __init__(
        self,
        histories: Iterable[Sequence[int]],
        vocabulary: SidVocabulary,
        layout: Layout,
        codes: npt.NDArray[np.uint16],
        *,
        max_history: int,
        heads: Sequence[Sequence[int]] | None = None,
        tails: Sequence[Sequence[Sequence[int] | None]] | None = None,
        title_ids: npt.NDArray[np.int32] | None = None,
    ) -> None:
        """``histories``: rows of ``codes`` (N, L), oldest first; the first item of one is never a target.
        ``heads``: token ids before each history (``PromptBuilder.head``; the vocabulary's begin token if not given). ``tails``:
        for each item of each history the token ids before its separator (``PromptBuilder.tail``), None where it is no target;
        all are, without a token, if not given. ``title_ids``: (N, T) tokens of titles behind SIDs. Histories without a target
        are left out.
        """
        if max_history < 2:
            raise SidstreamError(f"max_history must be at least 2 to train on whole histories, not {max_history}")
        windows: list[Sequence[int]] = []
        window_tails: list[list[Sequence[int] | None]] = []
        owners: list[int] = []
        for number, history in enumerate(histories):
            of_items = [()] * len(history) if tails is None else tails[number]
            for start, first_target in _windows(len(history), max_history):
                stop = start + max_history + 1
                asked = [None if start + at < first_target else text for at, text in enumerate(of_items[start:stop])]
                if any(text is not None for text in asked):
                    windows.append(history[start:stop])
                    window_tails.append(asked)
                    owners.append(number)
        if not windows:
            raise SidstreamError("no history has two items: give histories of buyers who came back")
        self.vocabulary = vocabulary
        self._codes = codes
        self._title_ids = _no_titles(codes) if title_ids is None else title_ids
        self._is_head = layout.is_head
        shape = (len(windows), max(map(len, windows)))
        self._items = np.full(shape, -1, dtype=np.int32)
        self._is_target = np.zeros(shape, dtype=bool)
        self._tail_lengths = np.zeros(shape, dtype=np.int64)
        tail_ids: list[int] = []
        for row, (window, asked) in enumerate(zip(windows, window_tails, strict=True)):
            self._items[row, : len(window)] = window
            self._is_target[row, : len(window)] = [text is not None for text in asked]
            if tails is not None:
                self._tail_lengths[row, : len(window)] = [len(text or ()) for text in asked]
                tail_ids += chain.from_iterable(text for text in asked if text)
        self._tail_ids = np.asarray(tail_ids or [-1], dtype=np.int32)
        self._tail_starts = (np.cumsum(self._tail_lengths) - self._tail_lengths.ravel()).reshape(shape)
        of_windows = [(vocabulary.begin_id,) if heads is None else tuple(heads[owner]) for owner in owners]
        number_of = {head: number for number, head in enumerate(dict.fromkeys(of_windows))}
        self._heads = np.full((len(number_of), max(map(len, number_of))), -1, dtype=np.int64)
        for head, number in number_of.items():
            self._heads[number, : len(head)] = head
        self._head_of = np.asarray([number_of[head] for head in of_windows])
        self.row_targets = self._is_target.sum(axis=1)
        self.targets = int(self.row_targets.sum())
        read = self._items[:, :-1]
        in_trunk = self._items[:, 1:] >= 0
        title_lengths = (self._title_ids >= 0).sum(axis=1)
        trunks = (in_trunk * (layout.layers + title_lengths[read])).sum(axis=1)
        trunks += (self._heads >= 0).sum(axis=1)[self._head_of]
        self.lengths = trunks + self.row_targets * layout.layers + self._tail_lengths.sum(axis=1)

    def __len__(self) -> int:
        return len(self._items)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that is its own, by name; the items' codes and titles are not."""
        return {name: getattr(self, name) for name in _OWN}

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
        table = cls.__new__(cls)
        table.vocabulary, table._codes, table._is_head = prompts.vocabulary, codes, layout.is_head
        table._title_ids = _no_titles(codes) if title_ids is None else title_ids
        for name in _OWN:
            setattr(table, name, arrays[name])
        table.targets = int(table.row_targets.sum())
        return table

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The histories at ``indices`` (B,); the form of each SID is drawn once for the trunk and once as a target."""
        items = self._items[indices]
        items = items[:, : int((items >= 0).sum(axis=1).max())]
        rows, width = items.shape
        layers = self._codes.shape[1]
        head = self._heads[self._head_of[indices]]
        titles = np.where(items[:, :-1, None] >= 0, self._title_ids[items[:, :-1]], -1)
        read = np.concatenate((self._sids(items[:, :-1], layer2_dropout, random), titles), axis=2)
        trunk = np.concatenate((head, read.reshape(rows, -1)), axis=1)
        # Branches: the last token of a SID is predicted, never read.
        text = self._tails(indices, width)
        places = text.shape[2]
        branch = np.full((rows, width - 1, places + 1 + layers), -1, dtype=np.int64)
        branch[:, :, :places] = text
        branch[:, :, places] = self.vocabulary.separator_id
        branch[:, :, places + 1 :] = self._sids(items[:, 1:], layer2_dropout, random)
        branch[~self._is_target[indices, 1:width]] = -1
        following = np.full(branch.shape, NOTHING_FOLLOWS, dtype=np.int64)
        for place in range(branch.shape[2] - 2, places - 1, -1):  # the next token that is present
            after = branch[:, :, place + 1]
            following[:, :, place] = np.where(after >= 0, after, following[:, :, place + 1])
        following[branch < 0] = NOTHING_FOLLOWS
        branch = branch[:, :, :-1]

        trunk_position = np.cumsum(trunk >= 0, axis=1) - 1
        # Branch k (target item k + 1) continues after the first k + 1 items of the trunk.
        starts = trunk_position[:, head.shape[1] - 1 + read.shape[2] * np.arange(1, width)] + 1
        branch_position = starts[:, :, None] + np.cumsum(branch >= 0, axis=2) - 1
        number = np.broadcast_to(np.arange(1, width)[None, :, None], branch.shape)
        seen_of_trunk = np.broadcast_to(starts[:, :, None], branch.shape)
        tokens = _Tokens(
            token_id=trunk,
            following=np.full(trunk.shape, NOTHING_FOLLOWS),
            position=trunk_position,
            branch=np.zeros_like(trunk),
            seen_of_trunk=trunk_position + 1,
        ).with_branches(_Tokens(branch, following[:, :, :-1], branch_position, number, seen_of_trunk))
        tokens = tokens.without_gaps()
        present = tokens.token_id >= 0
        return TrainingBatch(
            token_ids=np.where(present, tokens.token_id, self.vocabulary.padding_id),
            following=tokens.following,
            positions=np.where(present, tokens.position, 0),
            visible=tokens.visible(),
        )

    def _tails(self, indices: npt.NDArray[np.integer], width: int) -> npt.NDArray[np.int64]:
        """Token ids (B, width - 1, longest tail) of the tails for all items but the first, -1 behind their ends."""
        lengths = self._tail_lengths[indices, 1:width]
        place = np.arange(int(lengths.max()))
        found = self._tail_starts[indices, 1:width, None] + place
        is_there = place < lengths[:, :, None]
        return np.where(is_there, self._tail_ids[np.where(is_there, found, 0)], -1)

    def _sids(
        self, items: npt.NDArray[np.int32], layer2_dropout: float, random: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Token ids (…, L) of items (…); -1 for a left-out layer-2 token and for no item."""
        codes = self._codes[items].astype(np.int64)
        left_out = self._is_head[codes[..., HEAD_LAYER_INDEX]]
        if layer2_dropout > 0:
            left_out = left_out ^ (random.random(left_out.shape, dtype=np.float32) < layer2_dropout)
        tokens = codes + self.vocabulary.sid_base + np.arange(codes.shape[-1]) * self.vocabulary.size
        tokens[..., HEAD_LAYER_INDEX][left_out] = -1
        tokens[items < 0] = -1
        return tokens


_OWN: Final = (
    "_items",
    "_is_target",
    "_tail_lengths",
    "_tail_starts",
    "_tail_ids",
    "_heads",
    "_head_of",
    "row_targets",
    "lengths",
)


def _no_titles(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.int32]:
    return np.empty((len(codes), 0), dtype=np.int32)


def _windows(length: int, max_history: int) -> Iterable[tuple[int, int]]:
    """Start of each window of at most ``max_history`` + 1 items, and the first item that is a target in it."""
    start, target = 0, 1
    while target < length:
        yield start, target
        target = start + max_history + 1
        start = target - max(1, max_history // 2)
