"""Recall at SID and at item level of a trained model under the constraint, and what a layout does to the buckets.

What must hold: decoding is the product's own beam search; the item list is the SIDs in the order of their scores, the
items of a SID in the order of a ranking, or all items by their own probability: that of their SID times their share of it
(the share goes by weight, or by P(c2 | c1) of the left-out token first and by weight among equal codes), or all items by the
similarity of what their codes say of them to the query's embedding. Items of the history are left out of the item list (the
references do so too), and SIDs that name nothing else out of the SID list, so that the two levels can be compared; beside
it stands the list that keeps them.
Recall@k of a case is the share of its relevant items among the first k, as a mean over cases: with one relevant item it
is the hit rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from models.sids.layout import HEAD_LAYER_INDEX, PADDING, Layout
from retriever.answering.ranking import item_log_probabilities
from retriever.evaluation.bootstrap import resample
from retriever.search.beam_search import ScoredSid
from store.topology.layout_trie import SidItems
from study.data.datasets import Dataset, TestCase
from study.measures.catalogue_trie import CatalogueTrie

Ranking = Literal[
    "weight",
    "left-out token",
    "history, reconstructed",
    "history",
    "own probability",
    "own probability, left-out token",
    "query, reconstructed",
]
Recall: TypeAlias = dict[str, float]
Decode = Callable[[list[list[int]]], list[list[ScoredSid]]]
_FoundSid: TypeAlias = tuple[ScoredSid, SidItems]

CUTOFFS: Final = (1, 3, 5, 10, 30, 50)
RANKINGS: Final[tuple[Ranking, ...]] = get_args(Ranking)
SID: Final = "SID"
SID_WITHOUT_HISTORY: Final = "SID, history left out"
BEAMS: Final = 50
_QUERIES_A_BATCH: Final = 16
_NEVER: Final = 1_000_000  # rank of what was not found
UNSEEN_WEIGHT: Final = 0.5  # of an item that training never saw, where weights are counts


@dataclass(frozen=True, eq=False)
class Outcome:
    """One row a relevant item of a case: ``case`` and ``item`` (R,), rank of its SID and of itself by each ranking,
    counted from 1 (a million if not found). ``sid_rank``: among all SIDs of the answer, ``sid_rank_without_history``: among
    those that name an item which is not in the history.
    """

    case: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    sid_rank: npt.NDArray[np.int64]
    sid_rank_without_history: npt.NDArray[np.int64]
    item_ranks: Mapping[Ranking, npt.NDArray[np.int64]]

    def recalls(self, chosen: npt.NDArray[np.bool_] | None = None) -> dict[str, Recall]:
        """Recall by level (``SID_WITHOUT_HISTORY``, ``SID``, or "item, " and the ranking) and cutoff, over the chosen rows (R,);
        and how many cases that are.
        """
        levels = {SID_WITHOUT_HISTORY: self.sid_rank_without_history, SID: self.sid_rank}
        levels |= {f"item, {name}": ranks for name, ranks in self.item_ranks.items()}
        return {level: recall(self.case, ranks, chosen) for level, ranks in levels.items()}


def recall(
    case: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_] | None = None
) -> Recall:
    """Mean over cases of the share of a case's rows whose rank is at most k, for each cutoff k, with the ends of its interval
    (``low k``, ``high k``: 95 %, bootstrap over cases), and ``cases``.
    """
    if chosen is not None:
        case, ranks = case[chosen], ranks[chosen]
    if len(case) == 0:
        return {"cases": 0}
    _, place, rows = np.unique(case, return_inverse=True, return_counts=True)
    shares = np.array([np.bincount(place, weights=ranks <= k, minlength=len(rows)) / rows for k in CUTOFFS])
    found = resample(shares, np.ones(shares.shape, dtype=bool))
    figures: dict[str, float] = {}
    for k, *values in zip(CUTOFFS, found.point, *found.interval(), strict=True):
        figures |= dict(
            zip((str(k), f"low {k}", f"high {k}"), (round(float(value), 5) for value in values), strict=True)
        )
    return {"cases": len(rows)} | figures


def evaluate(
    decode: Decode,
    prompts: Sequence[list[int]],
    cases: Sequence[TestCase],
    data: Dataset,
    codes: npt.NDArray[np.uint16],
    trie: CatalogueTrie,
    reconstructed: npt.NDArray[np.float32],
) -> Outcome:
    """``decode``: prompts → SIDs of the trie, best first; ``reconstructed``: (N, D) what the codes say of the embeddings."""
    sids = trie.layout.sid_tokens(codes)
    owned = _OwnedSids(sids)
    names = tuple(name for name in RANKINGS if _applies(name, data))
    rows: list[tuple[int, int, int, int, *tuple[int, ...]]] = []
    for case, answer in zip(cases, _answers(decode, prompts), strict=True):
        listed = [tuple(sid.tokens) for sid in answer]
        without = owned.of(case.history)
        places = {tokens: place for place, tokens in enumerate(listed, start=1)}
        others = {tokens: place for place, tokens in enumerate((one for one in listed if one not in without), start=1)}
        found = list(zip(answer, trie.items_of([sid.tokens for sid in answer]), strict=True))
        orders = {name: _item_ranks(name, found, case, data, reconstructed) for name in names}
        for item in case.relevant:
            tokens = tuple(token for token in sids[item].tolist() if token != PADDING)
            ranks = [orders[name].get(item, _NEVER) for name in names]
            rows.append((case.case, item, places.get(tokens, _NEVER), others.get(tokens, _NEVER), *ranks))
    table = np.asarray(rows, dtype=np.int64)
    return Outcome(
        case=table[:, 0],
        item=table[:, 1],
        sid_rank=table[:, 2],
        sid_rank_without_history=table[:, 3],
        item_ranks={name: table[:, 4 + column] for column, name in enumerate(names)},
    )


class _OwnedSids:
    """Which SIDs (``sids``: (N, L) of all items, -1 padded) name nothing but items of a history."""

    def __init__(self, sids: npt.NDArray[np.int32]) -> None:
        self._sids = sids
        _, place, counts = np.unique(sids, axis=0, return_inverse=True, return_counts=True)
        self._sid, self._items = place.ravel(), counts

    def of(self, history: Sequence[int]) -> set[tuple[int, ...]]:
        """Their tokens, without padding."""
        items = np.unique(np.asarray(history, dtype=np.int64))
        owned, first, count = np.unique(self._sid[items], return_index=True, return_counts=True)
        rows = self._sids[items[first[count == self._items[owned]]]]
        return {tuple(token for token in row if token != PADDING) for row in rows.tolist()}


def _applies(name: Ranking, data: Dataset) -> bool:
    """Whether a set has what a ranking looks at."""
    if name.startswith("query"):
        return data.query_embeddings is not None
    return bool(data.histories) or not name.startswith("history")


def _answers(decode: Decode, prompts: Sequence[list[int]]) -> Iterator[list[ScoredSid]]:
    """Answers in the order of the prompts; prompts of like lengths are decoded together."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: list[list[ScoredSid]] = [[] for _ in prompts]
    for start in range(0, len(order), _QUERIES_A_BATCH):
        numbers = order[start : start + _QUERIES_A_BATCH]
        for number, answer in zip(numbers, decode([prompts[number] for number in numbers]), strict=True):
            found[number] = answer
    return iter(found)


def _item_ranks(
    name: Ranking,
    answer: Sequence[_FoundSid],
    case: TestCase,
    data: Dataset,
    reconstructed: npt.NDArray[np.float32],
) -> dict[int, int]:
    """Rank of each of the first items, without the history."""
    found: Iterable[int]
    if name.startswith("own probability"):
        found = _by_probability(answer, data, left_out=name.endswith("left-out token"))
    elif name == "query, reconstructed":
        found = _by_query(answer, case, data, reconstructed)
    else:
        found = _sid_by_sid(answer, _values(name, case, data, reconstructed), data)
    history = set(case.history)
    ranks: dict[int, int] = {}
    for item in found:
        if item not in history:
            ranks[item] = len(ranks) + 1
        if len(ranks) >= CUTOFFS[-1]:
            break
    return ranks


def _by_probability(answer: Sequence[_FoundSid], data: Dataset, *, left_out: bool) -> list[int]:
    """All items by their own log-probability, as the retriever ranks them; ties go to the smaller row."""
    if not answer:
        return []
    scores = [
        item_log_probabilities(
            sid,
            items.codes[:, HEAD_LAYER_INDEX],
            data.popularity[items.items],
            smoothing=UNSEEN_WEIGHT,
            by_left_out=left_out,
        )
        for sid, items in answer
    ]
    rows = np.concatenate([items.items for _, items in answer]).astype(np.int64)
    found: list[int] = rows[np.lexsort((rows, -np.concatenate(scores)))].tolist()
    return found


def _by_query(
    answer: Sequence[_FoundSid], case: TestCase, data: Dataset, reconstructed: npt.NDArray[np.float32]
) -> list[int]:
    """All items that were found by the cosine of what their codes say to the query's embedding; ties go to the better SID."""
    if not answer:
        return []
    assert data.query_embeddings is not None
    rows = np.concatenate([items.items for _, items in answer]).astype(np.int64)
    vectors = reconstructed[rows]
    cosines = vectors @ data.query_embeddings[case.case] / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
    found: list[int] = rows[np.argsort(-cosines, kind="stable")].tolist()
    return found


def _sid_by_sid(answer: Sequence[_FoundSid], values: npt.NDArray[np.float32] | None, data: Dataset) -> Iterator[int]:
    """The items of each SID by values (N,), None for the search's own log P(c2 | c1); ties go to the more popular item,
    then the smaller row.
    """
    for sid, of_sid in answer:
        items = of_sid.items.astype(np.int64)
        if len(items) > 1:
            left_out = None if sid.left_out is None else sid.left_out[of_sid.codes[:, HEAD_LAYER_INDEX]]
            by = values[items] if values is not None else left_out
            keys = (items, -data.popularity[items]) if by is None else (items, -data.popularity[items], -by)
            items = items[np.lexsort(keys)]
        yield from items.tolist()


def _values(
    name: Ranking, case: TestCase, data: Dataset, reconstructed: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32] | None:
    """What a ranking orders by, for all items (N,); None for the beam search's own log P(c2 | c1)."""
    if name == "left-out token":
        return None
    if name == "weight" or not case.history:
        return np.zeros(len(data.popularity), dtype=np.float32)
    vectors = reconstructed if name == "history, reconstructed" else data.embeddings
    values: npt.NDArray[np.float32] = vectors @ vectors[list(case.history)].mean(axis=0)
    if name == "history, reconstructed":
        values = values / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
    return values


def bucket_sizes(codes: npt.NDArray[np.uint16], layout: Layout) -> dict[str, float]:
    """How many items share a SID under a layout: SIDs, mean and largest bucket, and what an item sees on average (the
    mean bucket of an item) and at the 99th percentile.
    """
    _, place, counts = np.unique(layout.sid_tokens(codes), axis=0, return_inverse=True, return_counts=True)
    seen = counts[place.ravel()]
    return {
        "SIDs": len(counts),
        "items a SID": round(float(counts.mean()), 3),
        "largest": int(counts.max()),
        "of an item, mean": round(float(seen.mean()), 3),
        "of an item, 99 %": float(np.quantile(seen, 0.99)),
    }
