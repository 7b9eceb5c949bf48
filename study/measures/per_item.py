"""What a method comes to by the item: recall at an equal budget of items, nats an item, processor time a query.

What must hold: all three are of items, so that layouts whose SIDs name different numbers of items are compared on one scale:
a list of SIDs is cut where it has named so many items, whichever they are, and an item's probability is its SID's times its share
of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.sids.layout import PADDING
from models.sids.vocabulary import SidVocabulary
from retriever.evaluation.bootstrap import resample
from retriever.search.search_parts import ScoredSid
from study.data.datasets import TestCase
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import UNSEEN_WEIGHT

BUDGETS: Final = (10, 30, 50, 100, 500)
_QUERIES_A_BATCH: Final = 16
_IGNORED: Final = -1

Decode = Callable[[list[list[int]]], list[list[ScoredSid]]]
Figures = dict[str, float]


def measure_per_item(
    decode: Decode,
    model: Any,
    vocabulary: SidVocabulary,
    prompts: Sequence[list[int]],
    cases: Sequence[TestCase],
    trie: CatalogueTrie,
    codes: npt.NDArray[np.uint16],
    popularity: npt.NDArray[np.int64],
) -> dict[str, Figures]:
    """``items listed``: recall by ``BUDGETS``; ``nats``: mean of -log P(item | prompt); both with 95 % intervals, bootstrap over
    cases; ``processor``: milliseconds of one thread a query, decoded 16 at a time.

    ``codes`` (N, L) as the trie reads them; ``popularity`` (N,) weighs the items of a SID.
    """
    sids = trie.layout.sid_tokens(codes)
    shares = np.zeros((len(BUDGETS), len(cases)))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    spent = 0.0
    for start in range(0, len(order), _QUERIES_A_BATCH):
        numbers = order[start : start + _QUERIES_A_BATCH]
        before = time.process_time()
        answers = decode([prompts[number] for number in numbers])
        spent += time.process_time() - before
        for number, answer in zip(numbers, answers, strict=True):
            listed = [items.items for items in trie.items_of([sid.tokens for sid in answer])]
            shares[:, number] = recall_of_items_listed(listed, cases[number])
    nats = np.zeros((1, len(cases)))
    log_share = _log_shares(sids, popularity)
    log_sid = _log_probabilities(model, vocabulary, prompts, cases, sids)
    for number, (case, logs) in enumerate(zip(cases, log_sid, strict=True)):
        nats[0, number] = -float(
            np.mean([log + log_share[item] for log, item in zip(logs, case.relevant, strict=True)])
        )
    return {
        "items listed": _figures(shares, [str(budget) for budget in BUDGETS]),
        "nats": _figures(nats, ["mean"]),
        "processor": {"cases": len(cases), "ms": round(1_000 * spent / max(1, len(cases)), 3)},
    }


def recall_of_items_listed(listed: Sequence[npt.NDArray[np.integer]], case: TestCase) -> npt.NDArray[np.float64]:
    """Share of a case's relevant items (len(``BUDGETS``),) that a reader sees who is shown the items SID by SID, those of the
    history left out, and stops after so many: where a SID is cut, its items come in any order, and the share is the expected one.
    """
    budgets = np.array(BUDGETS, dtype=np.float64)
    found = np.zeros(len(budgets))
    wanted = set(case.relevant)
    shown = 0
    for items in listed:
        left = items[~np.isin(items, case.history)]
        if len(left):
            seen = np.clip((budgets - shown) / len(left), 0, 1)
            found += seen * len(wanted.intersection(left.tolist()))
            shown += len(left)
    return found / len(case.relevant)


def _log_shares(sids: npt.NDArray[np.int32], popularity: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Log of each item's share (N,) of its SID, by weight, as the retriever has it."""
    weights = popularity + UNSEEN_WEIGHT
    _, place = np.unique(sids, axis=0, return_inverse=True)
    place = place.ravel()
    found: npt.NDArray[np.float64] = np.log(weights / np.bincount(place, weights=weights)[place])
    return found


def _log_probabilities(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: Sequence[list[int]],
    cases: Sequence[TestCase],
    sids: npt.NDArray[np.int32],
) -> list[list[float]]:
    """Natural log P(SID | prompt) of each relevant item's SID, over the whole vocabulary."""
    import torch

    rows: list[tuple[int, list[int], list[int]]] = []  # case, prompt, token ids of the SID
    for number, case in enumerate(cases):
        for item in case.relevant:
            tokens = sids[item][sids[item] != PADDING]
            rows.append((number, prompts[number], vocabulary.token_ids(tokens).tolist()))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][1]) + len(rows[row][2]))
    found: list[float] = [0.0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), _QUERIES_A_BATCH):
            chosen = order[start : start + _QUERIES_A_BATCH]
            longest = max(len(rows[row][1]) + len(rows[row][2]) for row in chosen)
            ids = torch.full((len(chosen), longest), vocabulary.padding_id)
            targets = torch.full((len(chosen), longest), _IGNORED)
            attended = torch.zeros((len(chosen), longest), dtype=torch.long)
            for place, row in enumerate(chosen):
                _, prompt, sid = rows[row]
                whole = len(prompt) + len(sid)
                ids[place, :whole] = torch.tensor(prompt + sid)
                attended[place, :whole] = 1
                targets[place, len(prompt) - 1 : whole - 1] = torch.tensor(sid)
            logs = model(input_ids=ids, attention_mask=attended, use_cache=False).logits.double().log_softmax(-1)
            of_target = logs.gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0].masked_fill(targets == _IGNORED, 0)
            for row, value in zip(chosen, of_target.sum(dim=1).tolist(), strict=True):
                found[row] = value
    grouped: list[list[float]] = [[] for _ in cases]
    for (number, _, _), value in zip(rows, found, strict=True):
        grouped[number].append(value)
    return grouped


def _figures(values: npt.NDArray[np.float64], names: Sequence[str]) -> Figures:
    """Means of rows (K, cases) by name, with the ends of their intervals."""
    found = resample(values, np.ones(values.shape, dtype=bool))
    figures: Figures = {"cases": values.shape[1]}
    for name, *ends in zip(names, found.point, *found.interval(), strict=True):
        keys = (name, f"low {name}", f"high {name}")
        figures |= dict(zip(keys, (round(float(end), 5) for end in ends), strict=True))
    return figures
