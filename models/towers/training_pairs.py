"""What text towers learn from: a text, and the item that it is to find.

A query finds the item that was taken for it. Where nobody wrote one, the title of what was taken before stands for it: items that
the same people take come near each other, and a new item near those whose words it shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from models.catalogue import CatalogueItem
from models.examples.made_queries import examples_from_catalogue
from models.examples.records import TrainingData, TrainingExample

QUERIES_AN_ITEM: Final = 6


def queries_and_sequences(
    items: Sequence[CatalogueItem],
    sequences: Iterable[Iterable[str]],
    *,
    per_item: int = QUERIES_AN_ITEM,
    seed: int = 0,
) -> TrainingData:
    """Queries made from the items' texts, ``per_item`` of each, and what was taken one after the other."""
    queries = TrainingData(examples=tuple(examples_from_catalogue(items, per_item=per_item, seed=seed)))
    return queries + TrainingData.of_sequences(sequences)


def training_pairs(data: TrainingData, titles: Mapping[str, str]) -> Iterator[TrainingExample]:
    """A query and an item for each item that is to be generated; ``titles``: of the catalogue's items, by id.

    The query is empty where nothing speaks for the item: without a query, and without an item of the catalogue before it.
    """
    for example in data.examples:
        before = example.history[-1] if example.history else ""
        yield TrainingExample(query=example.query.strip() or titles.get(before, ""), item=example.item)
    for history in data.histories:
        asked = history.asked()
        for (before, item), query in zip(pairwise(("", *history.items)), asked, strict=True):
            if query is not None:
                yield TrainingExample(query=query.strip() or titles.get(before, ""), item=item)
