"""Codes of a query's embedding in its prompt, before its text: there the query stands like the newest item of the history.

What must hold: training writes them where serving does (``retriever.answering``); equal texts are embedded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from models.examples.records import TrainingData, TrainingExample, TrainingHistory

_PREFIX: Final = "\x00query "  # no item id begins so: they are text that people and shops write


class QueryCodes:
    """The items that prompts name, to which the queries of training data join.

    ``item_ids`` and ``codes`` uint16 (N, L) of the catalogue; ``encode``: texts → codes (T, L); ``max_history``: of a prompt.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: npt.NDArray[np.uint16],
        encode: Callable[[Sequence[str]], npt.NDArray[np.uint16]],
        max_history: int,
    ) -> None:
        self.item_ids = list(item_ids)
        self.codes = codes
        self._encode = encode
        self._max_history = max_history
        self._names: dict[str, str] = {}

    def write_into(self, data: TrainingData) -> TrainingData:
        """The data, each of its texts with its codes before it. What a history asks for by a text becomes an example of its own:
        a prompt that ends in codes is no beginning of a longer one.
        """
        histories, asked = [], []
        for history in data.histories:
            rest, apart = self._parted(history)
            if any(query is not None for query in rest.asked()):
                histories.append(rest)
            asked += apart
        examples = (*data.examples, *asked)
        fresh = [
            text
            for text in dict.fromkeys(one.query for one in examples if one.query.strip())
            if text not in self._names
        ]
        if fresh:
            names = [f"{_PREFIX}{len(self._names) + number}" for number in range(len(fresh))]
            self._names |= dict(zip(fresh, names, strict=True))
            self.item_ids += names
            self.codes = np.concatenate((self.codes, self._encode(fresh)))
        return TrainingData(tuple(histories), tuple(map(self._coded, examples)))

    def _parted(self, history: TrainingHistory) -> tuple[TrainingHistory, list[TrainingExample]]:
        queries = history.asked()
        if not any(queries):
            return history, []
        apart = [
            TrainingExample(query, history.user, history.items[max(0, at - self._max_history) : at], history.items[at])
            for at, query in enumerate(queries)
            if query
        ]
        return TrainingHistory(history.items, history.user, tuple(query and None for query in queries)), apart

    def _coded(self, example: TrainingExample) -> TrainingExample:
        if not example.query.strip():
            return example
        return TrainingExample(
            example.query, example.user, (*example.history, self._names[example.query]), example.item
        )
