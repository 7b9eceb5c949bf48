"""The items that the product's search finds for a prompt, as rows of a set with their log-probabilities.

What must hold: beams, search and an item's probability are the retriever's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.sids.layout import HEAD_LAYER_INDEX
from models.sids.vocabulary import SidVocabulary
from retriever.answering.ranking import item_log_probabilities
from retriever.search.beam_search import beam_search
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import BEAMS

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # rows, natural log-probabilities
_QUERIES_A_BATCH: Final = 16


def found_items(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: Sequence[list[int]],
    trie: CatalogueTrie,
    popularity: npt.NDArray[np.int64],
    *,
    smoothing: float = 0.0,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Found]:
    """``popularity`` (N,): weighs the items of a SID, ``smoothing`` added to each."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, Found] = {}
    for start in range(0, len(order), _QUERIES_A_BATCH):
        numbers = order[start : start + _QUERIES_A_BATCH]
        answers = beam_search(model, vocabulary, [prompts[number] for number in numbers], trie, beams=BEAMS)
        for number, sids in zip(numbers, answers, strict=True):
            of_sids = trie.items_of([sid.tokens for sid in sids])
            scores = [
                item_log_probabilities(
                    sid, items.codes[:, HEAD_LAYER_INDEX], popularity[items.items], smoothing=smoothing
                )
                for sid, items in zip(sids, of_sids, strict=True)
            ]
            rows = [np.empty(0, dtype=np.int64), *(items.items.astype(np.int64) for items in of_sids)]
            found[number] = np.concatenate(rows), np.concatenate([np.empty(0), *scores])
        progress(start / len(order))
    return [found[number] for number in range(len(prompts))]
