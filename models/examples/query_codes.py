"""Codes of a query's embedding in its prompt, before its text: there the query stands like the newest item of the history.

What must hold: training writes them where serving does (``retriever.answering``); equal queries are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.examples.folding import examples_of
from models.examples.records import TrainingData, TrainingExample, TrainingHistory

_PREFIX: Final = "\x00query "  # no item id begins so: they are text that people and shops write


class QueryCodes:
    """The items that prompts name, to which the queries of training data join.

    ``item_ids`` and ``codes`` uint16 (N, L) of the catalogue; ``encode``: embeddings float32 (Q, D) → codes (Q, L); ``embed``:
    texts → embeddings, for the queries that bring none, None where nobody can: they get no codes; ``max_history``: of a prompt.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        codes: npt.NDArray[np.uint16],
        encode: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint16]],
        embed: Callable[[Sequence[str]], npt.NDArray[np.float32]] | None,
        max_history: int,
    ) -> None:
        self.item_ids = list(item_ids)
        self.codes = codes
        self._encode = encode
        self._embed = embed
        self._max_history = max_history
        self._names: dict[str | bytes, str] = {}

    def __len__(self) -> int:
        """How many queries have codes."""
        return len(self._names)

    def write_into(self, data: TrainingData) -> TrainingData:
        """The data, each of its queries with its codes before its text. What a history asks for by a text becomes an example of
        its own: a prompt that ends in codes is no beginning of a longer one.
        """
        histories, asked = [], []
        for history in data.histories:
            rest, apart = self._parted(history)
            if any(query is not None for query in rest.asked()):
                histories.append(rest)
            asked += apart
        examples = (*data.examples, *asked)
        fresh = [key for key in dict.fromkeys(map(self._key, examples)) if key is not None and key not in self._names]
        own = [np.frombuffer(key, "<f4") for key in fresh if isinstance(key, bytes)]
        if own:
            self._join([key for key in fresh if isinstance(key, bytes)], np.stack(own))
        texts = [key for key in fresh if isinstance(key, str)]
        if texts and self._embed is not None:
            self._join(texts, self._embed(texts))
        return TrainingData(tuple(histories), tuple(map(self._coded, examples)))

    def _join(self, keys: Sequence[str | bytes], embeddings: npt.NDArray[np.float32]) -> None:
        names = [f"{_PREFIX}{len(self._names) + number}" for number in range(len(keys))]
        self._names |= dict(zip(keys, names, strict=True))
        self.item_ids += names
        self.codes = np.concatenate((self.codes, self._encode(embeddings)))

    def _parted(self, history: TrainingHistory) -> tuple[TrainingHistory, list[TrainingExample]]:
        queries = history.asked()
        if not any(queries):
            return history, []
        asked = [example for example in examples_of(history, self._max_history) if example.query]
        return TrainingHistory(history.items, history.user, tuple(query and None for query in queries)), asked

    def _key(self, example: TrainingExample) -> str | bytes | None:
        """What the query is embedded from: its own embedding, else its text, None for neither."""
        if example.embedding is not None:
            return example.embedding
        return example.query if self._embed is not None and example.query.strip() else None

    def _coded(self, example: TrainingExample) -> TrainingExample:
        key = self._key(example)
        if key is None:
            return example
        return msgspec.structs.replace(example, history=(*example.history, self._names[key]))
