"""Whole histories as training rows: every item of a history but the first is a target, and the history is run once.

What must hold: the loss is that of one example a target, each with the prompt of serving (``begin [user] history
separator``); only the work is shared. A row is a trunk, ``begin [user] SID SID …``, and behind it one branch a target,
``separator c1 c2 …``, that sees the trunk up to its own place and itself (``TrainingBatch.visible``). For histories of n
items that is about 2 n SIDs a row, where separate examples would be n² / 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.sids.layout import HEAD_LAYER_INDEX, Layout
from models.sids.vocabulary import SidVocabulary
from models.training.example_table import NOTHING_FOLLOWS, TrainingBatch


class HistoryTable:
    """Histories as rows of items (N, W + 1), -1 where a history is shorter.

    A history longer than ``max_history`` + 1 is cut into windows that overlap by half: each of its items but the first
    is a target once, with at least half of ``max_history`` items before it if so many came before.
    """

    def __init__(
        self,
        histories: Iterable[Sequence[int]],
        vocabulary: SidVocabulary,
        layout: Layout,
        codes: npt.NDArray[np.uint16],
        *,
        max_history: int,
        begin_id: int | None = None,
        users: Sequence[str | None] | None = None,
    ) -> None:
        """``histories``: rows of ``codes`` (N, L), oldest first; those of fewer than two items have no target and are
        left out. ``begin_id``: the tokenizer's own, if it has one (``PromptBuilder``). ``users``: one a history.
        """
        if max_history < 2:
            raise SidstreamError(f"max_history must be at least 2 to train on whole histories, not {max_history}")
        windows: list[Sequence[int]] = []
        first_targets: list[int] = []
        owners: list[int] = []
        self.skipped = 0
        for number, history in enumerate(histories):
            if len(history) < 2:
                self.skipped += 1
            for start, first_target in _windows(len(history), max_history):
                windows.append(history[start : start + max_history + 1])
                first_targets.append(first_target - start)
                owners.append(number)
        if not windows:
            raise SidstreamError("no history has two items: give histories of buyers who came back")
        self.vocabulary = vocabulary
        self._begin = vocabulary.begin_id if begin_id is None else begin_id
        self._codes = codes
        self._is_head = layout.is_head
        self._items = np.full((len(windows), max(map(len, windows))), -1, dtype=np.int32)
        for row, window in zip(self._items, windows, strict=True):
            row[: len(window)] = window
        self._first_targets = np.asarray(first_targets)
        user_ids = [None if user is None else vocabulary.user_id(user) for user in users or ()]
        self._users = np.asarray(
            [-1 if not user_ids or (user := user_ids[owner]) is None else user for owner in owners], dtype=np.int64
        )
        items = (self._items >= 0).sum(axis=1)
        targets = items - self._first_targets
        self.targets = int(targets.sum())
        self.lengths = 1 + (items - 1) * layout.layers + targets * layout.layers

    def __len__(self) -> int:
        return len(self._items)

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The histories at ``indices`` (B,); the form of each SID is drawn once for the trunk and once as a target."""
        items = self._items[indices]
        items = items[:, : int((items >= 0).sum(axis=1).max())]
        rows, width = items.shape
        layers = self._codes.shape[1]
        trunk = np.full((rows, 2 + (width - 1) * layers), -1, dtype=np.int64)
        trunk[:, 0] = self._begin
        trunk[:, 1] = self._users[indices]
        trunk[:, 2:] = self._sids(items[:, :-1], layer2_dropout, random).reshape(rows, -1)
        # Branches: all but the first item; the last token of a SID is predicted, never read.
        is_target = (items[:, 1:] >= 0) & (np.arange(1, width) >= self._first_targets[indices, None])
        branch = np.full((rows, width - 1, 1 + layers), -1, dtype=np.int64)
        branch[:, :, 0] = self.vocabulary.separator_id
        branch[:, :, 1:] = self._sids(items[:, 1:], layer2_dropout, random)
        branch[~is_target] = -1
        following = np.full(branch.shape, NOTHING_FOLLOWS, dtype=np.int64)
        for layer in range(layers - 1, -1, -1):  # the next token that is present
            after = branch[:, :, layer + 1]
            following[:, :, layer] = np.where(after >= 0, after, following[:, :, layer + 1])
        following[branch < 0] = NOTHING_FOLLOWS
        branch = branch[:, :, :-1]

        trunk_place = np.cumsum(trunk >= 0, axis=1) - 1
        # Branch k (target item k + 1) continues after the first k + 1 items of the trunk.
        starts = trunk_place[:, 1 + layers * np.arange(1, width)] + 1
        branch_place = starts[:, :, None] + np.cumsum(branch >= 0, axis=2) - 1
        owner = np.broadcast_to(np.arange(1, width)[None, :, None], branch.shape)
        flat = (rows, -1)
        columns = {
            "token": np.concatenate((trunk, branch.reshape(flat)), axis=1),
            "following": np.concatenate(
                (np.full(trunk.shape, NOTHING_FOLLOWS), following[:, :, :-1].reshape(flat)), axis=1
            ),
            "place": np.concatenate((trunk_place, branch_place.reshape(flat)), axis=1),
            "owner": np.concatenate((np.zeros_like(trunk), owner.reshape(flat)), axis=1),
            # How much of the trunk is seen: up to oneself, or all before the branch.
            "reach": np.concatenate(
                (trunk_place + 1, np.broadcast_to(starts[:, :, None], branch.shape).reshape(flat)), axis=1
            ),
        }
        present = columns["token"] >= 0
        order = np.argsort(~present, axis=1, kind="stable")[:, : int(present.sum(axis=1).max())]
        token, following, place, owner, reach = (np.take_along_axis(part, order, axis=1) for part in columns.values())
        present = token >= 0
        in_trunk = (owner == 0) & present
        visible = in_trunk[:, None, :] & (place[:, None, :] < reach[:, :, None])
        same_branch = (owner[:, :, None] == owner[:, None, :]) & (owner > 0)[:, None, :] & present[:, None, :]
        visible |= same_branch & (place[:, None, :] <= place[:, :, None])
        visible |= np.eye(token.shape[1], dtype=bool)  # padding sees itself: a row of nothing would be NaN
        return TrainingBatch(
            token_ids=np.where(present, token, self.vocabulary.padding_id),
            following=following,
            positions=np.where(present, place, 0),
            visible=visible,
        )

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


def _windows(length: int, max_history: int) -> Iterable[tuple[int, int]]:
    """Start of each window of at most ``max_history`` + 1 items, and the first item that is a target in it."""
    start, target = 0, 1
    while target < length:
        yield start, target
        target = start + max_history + 1
        start = target - max(1, max_history // 2)
