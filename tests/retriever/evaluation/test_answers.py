"""From answers to lists: the history taken out, foreign items in their places, reasons of what was not answered counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from models.catalogue import Catalogue, CatalogueItem
from retriever.evaluation.answers import NO_ANSWER, answer_cases, live, offline
from retriever.evaluation.cases import EvaluationCase, EvaluationError
from store.writing.writer import IndexWriter
from streamer.events.records import Answer, AnswerError, AnswerItem, Query
from streamer.settings import load_settings
from streamer.settings.retriever import RetrieverSettings

CATALOGUE = Catalogue(
    items=tuple(CatalogueItem(id=f"i{row}", title="") for row in range(5)), embeddings=np.ones((5, 2), dtype=np.float32)
)


def case(query: str, history: tuple[int, ...] = ()) -> EvaluationCase:
    return EvaluationCase(query, None, history, (0,), (1.0,))


def answer(*items: str, error: str | None = None) -> Answer:
    found = tuple(AnswerItem(item_id=item, title="", sid="", score=0.0) for item in items)
    return Answer(query_id="q", items=found, layout=3, error=AnswerError(kind=error, message="") if error else None)


def test_lists_are_of_the_catalogues_rows_without_the_history_and_reasons_are_counted() -> None:
    answers = {
        "a": answer("i1", "elsewhere", "i2", "i3", "i4"),
        "b": answer(error="NothingFound"),
        "c": None,
    }
    asked: list[Query] = []

    def ask(queries: Sequence[Query]) -> list[Answer | None]:
        asked.extend(queries)
        return [answers[query.text] for query in queries]

    done: list[tuple[int, int]] = []
    found = answer_cases(
        ask, [case("a", (1, 0)), case("b"), case(" "), case("c")], CATALOGUE, 3, RetrieverSettings(),
        lambda *counts: done.append(counts), at_once=3,
    )  # fmt: skip
    assert found.lists.items.tolist() == [[5, 2, 3], [-1] * 3, [-1] * 3, [-1] * 3]
    assert dict(found.unanswered) == {"NothingFound": 1, "EmptyQuery": 1, NO_ANSWER: 1}
    assert found.foreign == 1
    assert found.about["layout"] == "3 (pinned)"
    assert done == [(3, 4), (4, 4)]
    assert [(query.text, query.history, query.limit) for query in asked] == [
        ("a", ("i1", "i0"), 3), ("b", (), 3), ("c", (), 3),
    ]  # fmt: skip


def test_a_long_history_is_asked_by_its_newest_items_and_left_out_whole() -> None:
    settings = RetrieverSettings(maximum_history=2)
    found = answer_cases(
        lambda queries: [answer(*(f"i{row}" for row in range(5)))] if queries[0].history == ("i2", "i3") else [None],
        [case("a", (1, 2, 3))], CATALOGUE, 5, settings, lambda *_: None, at_once=1,
    )  # fmt: skip
    assert found.lists.items.tolist() == [[0, 4, -1, -1, -1]]


def test_silence_from_the_first_is_an_error_and_later_is_counted() -> None:
    class Silent:
        heard = False

        def ask_within(self, queries: Sequence[Query], *, timeout_seconds: float) -> list[Answer | None]:
            assert timeout_seconds == 2.0
            return [answer("i1") if self.heard else None for _ in queries]

    client = Silent()
    with pytest.raises(EvaluationError, match="within 2 s: is a retriever running"):
        live(client, 2.0)([Query(text="a")])  # type: ignore[arg-type]
    ask = live(client, 2.0)  # type: ignore[arg-type]
    client.heard = True
    assert ask([Query(text="a")])[0] is not None
    client.heard = False
    assert ask([Query(text="b")]) == [None]


def test_index_of_some_partitions_is_no_catalogue_to_evaluate_over(tiny_model_bundle: Path, tmp_path: Path) -> None:
    layout = Bundle.open(tiny_model_bundle).layout
    shape = {"codebook_id": layout.codebook_id, "layers": layout.layers, "size": layout.size}
    IndexWriter.open(tmp_path / "shard", partitions="0-1", **shape).close()
    settings = load_settings(bundle=tiny_model_bundle)
    with (
        pytest.raises(EvaluationError, match=r"is a shard \(the partitions 0-1"),
        offline(settings, tmp_path / "shard"),
    ):
        pytest.fail("it answered")
