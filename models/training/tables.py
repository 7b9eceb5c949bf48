"""Tables of token ids, and the batches that a step learns from, cut with array operations alone: on a small model Python
per example would cost more than the model.

What must hold: a batch has rows of like lengths of one table, and about as many targets as every other; the same seed,
epoch and number give the same batch, whatever was drawn before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.sids.vocabulary import SidVocabulary

if TYPE_CHECKING:
    import torch

NOTHING_FOLLOWS: Final = -100  # transformers' label for "no loss here"
_LENGTH_NOISE: Final = 0.1  # share by which lengths are blurred, so that batches differ between epochs


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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays that are there, by name, as tensors over the same memory."""
        import torch

        return {name: torch.from_numpy(array) for name, array in asdict(self).items() if array is not None}

    @property
    def predicted(self) -> int:
        """How many tokens are to be predicted."""
        return int(np.count_nonzero(self.following != NOTHING_FOLLOWS))

    def rows(self, part: slice) -> TrainingBatch:
        """Some of its sequences, no longer than the longest of them: each ends where its last token is to be predicted."""
        following = self.following[part]
        end = int(np.flatnonzero((following != NOTHING_FOLLOWS).any(axis=0))[-1]) + 1
        return TrainingBatch(
            self.token_ids[part, :end],
            following[:, :end],
            None if self.positions is None else self.positions[part, :end],
            None if self.visible is None else self.visible[part, :end, :end],
        )


class TrainingTable(Protocol):
    """What training needs: how long each row is, how many targets it has, and batches of rows.

    ``vocabulary``: of the SIDs' tokens; ``lengths``: (N,) tokens a row; ``row_targets``: (N,) SIDs to be predicted in each;
    ``targets``: their sum.
    """

    vocabulary: SidVocabulary
    lengths: npt.NDArray[np.int64]
    row_targets: npt.NDArray[np.int64]
    targets: int

    def __len__(self) -> int:
        """Rows."""

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The rows at ``indices`` (B,), each SID in its other form with probability ``layer2_dropout``."""


class JoinedTable:
    """Several tables as one; rows of two tables never stand in one batch."""

    def __init__(self, parts: Sequence[TrainingTable]) -> None:
        self.parts = tuple(parts)
        self.vocabulary = parts[0].vocabulary
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.row_targets = np.concatenate([part.row_targets for part in parts])
        self.targets = sum(part.targets for part in parts)
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[npt.NDArray[np.intp]]:
        """Indices of each part's rows."""
        return [np.arange(start, stop) for start, stop in zip(self._starts, self._starts[1:], strict=False)]

    def batch(
        self, indices: npt.NDArray[np.integer], layer2_dropout: float, random: np.random.Generator
    ) -> TrainingBatch:
        """The rows at ``indices``, all of one part."""
        part = int(np.searchsorted(self._starts, indices[0], side="right")) - 1
        return self.parts[part].batch(indices - self._starts[part], layer2_dropout, random)


@dataclass(frozen=True)
class BlockedTable:
    """A table of which one block at a time is in memory. ``blocks``: rows and targets of each of its parts; ``load``: a block's
    number → its table, with these parts.
    """

    vocabulary: SidVocabulary
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    load: Callable[[int], TrainingTable]

    @property
    def targets(self) -> int:
        """SIDs to be predicted, in all blocks."""
        return sum(targets for parts in self.blocks for _, targets in parts)

    def __len__(self) -> int:
        return sum(rows for parts in self.blocks for rows, _ in parts)


@dataclass(frozen=True)
class Shares:
    """How the batch of a step is divided: among ``world`` processes, of which this is ``rank``, and for each into ``accumulate``
    parts, one after the other.
    """

    accumulate: int = 1
    world: int = 1
    rank: int = 0

    @property
    def parts(self) -> int:
        """Of a step."""
        return self.accumulate * self.world


class Batches:
    """A data loader: all rows once an epoch in random order; what transformers' ``Trainer`` needs of one and no more. Of a
    blocked table the blocks come in random order, and the rows of one after the other.

    Yields this process' parts of each step's batch, with the ``share`` that a part has in the tokens to be predicted: its mean
    loss times its share, summed over the parts, is the mean loss of the step, however that is divided.
    ``begin_after(step)``: as if ``step`` batches had been taken already.
    """

    def __init__(
        self,
        table: TrainingTable | BlockedTable,
        batch_size: int,
        *,
        layer2_dropout: float = 0.0,
        seed: int = 0,
        shares: Shares | None = None,
    ) -> None:
        """``batch_size``: targets a step, about; a row is never divided."""
        self.dataset = table  # Trainer counts the examples
        self._shares = shares or Shares()
        self._batch_size, self._layer2_dropout, self._seed = batch_size, layer2_dropout, seed
        self._steps = [
            sum(_count(rows, targets, batch_size) for rows, targets in parts)
            for parts in (table.blocks if isinstance(table, BlockedTable) else [_sizes(table)])
        ]
        self._epoch = self._skip = 0

    def __len__(self) -> int:
        return self.steps * self._shares.accumulate

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return sum(self._steps)

    def begin_after(self, step: int) -> None:
        """The next batch is the one after the batches of ``step`` steps."""
        self._epoch, self._skip = divmod(step, self.steps)

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which epoch begins."""
        if epoch != self._epoch:
            self._epoch, self._skip = epoch, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        order = np.random.default_rng((self._seed, epoch))
        if not isinstance(self.dataset, BlockedTable):
            yield from self._batches(self.dataset, order, epoch, 0, skip)
            return
        firsts = np.cumsum([0, *self._steps])
        for block in order.permutation(len(self._steps)).tolist():
            if skip < self._steps[block]:
                random = np.random.default_rng((self._seed, epoch, block, 0))
                yield from self._batches(self.dataset.load(block), random, epoch, int(firsts[block]), skip)
            skip = max(0, skip - self._steps[block])

    def _batches(
        self, table: TrainingTable, order: np.random.Generator, epoch: int, first: int, skip: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Those of a table in memory; ``first``: the number that its first batch has in the epoch."""
        rows = cut(table, self._batch_size, order)
        for number in order.permutation(len(rows))[skip:]:
            random = np.random.default_rng((self._seed, epoch, first + int(number)))
            batch = table.batch(rows[number], self._layer2_dropout, random)
            yield from self._parted(batch, table.row_targets[rows[number]])

    def _parted(self, batch: TrainingBatch, row_targets: npt.NDArray[np.int64]) -> Iterator[dict[str, torch.Tensor]]:
        import torch

        shares, predicted = self._shares, batch.predicted
        count = min(shares.parts, len(row_targets))
        starts = [0, *_cuts(row_targets, count).tolist(), len(row_targets)]
        for part in range(shares.rank, shares.parts, shares.world):
            # Fewer rows than parts: every process takes as many parts as the others, the surplus ones with nothing to say.
            at = min(part, count - 1)
            own = batch.rows(slice(starts[at], starts[at + 1]))
            share = own.predicted / predicted if part < count else 0.0
            yield {**own.tensors(), "share": torch.tensor(share)}


def cut(table: TrainingTable, batch_size: int, random: np.random.Generator | None = None) -> list[npt.NDArray[np.intp]]:
    """Rows of each batch, the shortest first within each part; ``random``: None to keep lengths as they are."""
    batches: list[npt.NDArray[np.intp]] = []
    parts = table.rows() if isinstance(table, JoinedTable) else [np.arange(len(table))]
    for rows, (_, targets) in zip(parts, _sizes(table), strict=True):
        lengths = table.lengths[rows]
        if random is not None:
            lengths = lengths * random.uniform(1 - _LENGTH_NOISE, 1 + _LENGTH_NOISE, size=len(rows))
        order = rows[np.argsort(lengths, kind="stable")]
        batches += np.split(order, _cuts(table.row_targets[order], _count(len(rows), targets, batch_size)))
    return batches


def _sizes(table: TrainingTable) -> list[tuple[int, int]]:
    """Rows and targets of each part."""
    return [(len(part), part.targets) for part in (table.parts if isinstance(table, JoinedTable) else (table,))]


def _count(rows: int, targets: int, batch_size: int) -> int:
    return min(rows, -(-targets // batch_size))


def _cuts(row_targets: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.intp]:
    """Where to cut rows into ``count`` parts of about as many targets, none empty."""
    reached = np.cumsum(row_targets)
    number = np.arange(1, count)
    cuts = np.searchsorted(reached, number * (reached[-1] / count)) + 1  # behind the row that reaches it
    cuts = np.maximum.accumulate(cuts - number) + number
    last: npt.NDArray[np.intp] = np.minimum(cuts, len(row_targets) - count + number)
    return last


def nothing_to_learn(of: str) -> SidstreamError:
    """The refusal of data of which no table can be made; ``of``: what they are called."""
    return SidstreamError(
        f"the {of} data have nothing to learn: no example names an item of the catalogue, and no history has two of its "
        "items; give data that belong to the catalogue"
    )
