"""What text towers learn from: a text, and the item that it is to find.

A query finds the item that was taken for it. Where nobody wrote one, the title of what was taken before stands for it: items that
the same people take come near each other, and a new item near those whose words it shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from models.examples.records import TrainingData, TrainingExample


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
