"""Which cases a person asks for: the source that is named, or what the catalogue has; embeddings of the queries beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.catalogue import Catalogue, CatalogueItem, CatalogueQuery
from models.examples.records import TrainingExample, write_examples
from retriever.evaluation.cases import EvaluationError
from retriever.evaluation.sources import SourceOptions, arrived_rows, choose_cases


def catalogue(**more: object) -> Catalogue:
    items = tuple(CatalogueItem(id=f"i{row}", title=f"thing {row}") for row in range(6))
    return Catalogue(items=items, embeddings=np.eye(6, 4, dtype=np.float32) + 1, **more)  # type: ignore[arg-type]


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    """ada takes i0 … i4, a day between them; bob takes i5 on the last day."""
    path = tmp_path / "interactions.tsv"
    rows = [("ada", f"i{day}", f"2026-05-0{day + 1}") for day in range(5)] + [("bob", "i5", "2026-05-05")]
    path.write_text("user\titem\ttime\n" + "".join("\t".join(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"leave_last_out": True}, [((0, 1, 2, 3), (4,))]),
        ({"after": "2026-05-04"}, [((0, 1, 2), (3,)), ((0, 1, 2, 3), (4,)), ((), (5,))]),
        ({"last_share": 0.3}, [((0, 1, 2, 3), (4,)), ((), (5,))]),
        ({}, [((0, 1, 2, 3), (4,)), ((), (5,))]),  # equal times stay together
    ],
)
def test_interactions_are_split_as_asked(
    interactions: Path, options: dict[str, object], expected: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    found = choose_cases(catalogue(), SourceOptions(interactions=interactions, **options))  # type: ignore[arg-type]
    assert [(case.history, case.relevant) for case in found.cases] == expected


def test_without_a_source_the_sequences_are_and_without_them_the_judged_queries(interactions: Path) -> None:
    judged = {"queries": (CatalogueQuery("q", "lamp"),), "qrels": {"q": {"i3": 2}}}
    both = catalogue(sequences={"ada": ("i0", "i1", "i2")}, **judged)
    assert choose_cases(both, SourceOptions()).cases[0].relevant == (2,)
    assert choose_cases(both, SourceOptions(judged=True)).cases[0].relevant == (3,)
    assert choose_cases(catalogue(**judged), SourceOptions()).cases[0].relevant == (3,)
    with pytest.raises(EvaluationError, match="no case to evaluate on"):
        choose_cases(catalogue(**judged), SourceOptions(least_rating=3)).require_some()
    with pytest.raises(EvaluationError, match="--after 'soon' is no time"):
        choose_cases(both, SourceOptions(interactions=interactions, after="soon"))


def test_queries_get_the_catalogues_embeddings_and_others_those_of_the_towers(tmp_path: Path) -> None:
    shop = catalogue(queries=(CatalogueQuery("q", "lamp"),), query_embeddings=np.full((1, 4), 7, dtype=np.float32))
    path = tmp_path / "test.jsonl"
    write_examples(path, [TrainingExample(query=text, item="i1") for text in ("lamp", "rug", " ", "rug ")])

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text)] * 4 for text in texts], dtype=np.float32)

    plain = choose_cases(shop, SourceOptions(examples=path))
    assert [case.query_row for case in plain.cases] == [0, -1, -1, -1]
    found = choose_cases(shop, SourceOptions(examples=path), embed)
    assert found.query_embeddings is not None
    rows = [case.query_row for case in found.cases]
    assert rows[2] == -1
    assert [found.query_embeddings[rows[place], 0] for place in (0, 1, 3)] == [7, 3, 4]


def test_new_items_are_rows_of_the_ids_that_the_catalogue_has(tmp_path: Path) -> None:
    path = tmp_path / "new.txt"
    path.write_text("i4\nelsewhere\ni1\n")
    assert arrived_rows(catalogue(), path) == (4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_rating": 3}, "--least-rating is for judged queries, and the cases are of the catalogue's sequences"),
        ({"least_rating": 3, "leave_last_out": True}, "the cases are of --leave-last-out: give --judged"),
        ({"least_rating": 3, "examples": Path("x")}, "the cases are of --examples: give --judged"),
        ({"training": Path("x")}, "--training goes with --examples and --judged"),
    ],
)
def test_option_of_another_source_is_refused_also_where_no_source_is_named(
    options: dict[str, object], message: str
) -> None:
    both = catalogue(
        sequences={"ada": ("i0", "i1", "i2")}, queries=(CatalogueQuery("q", "lamp"),), qrels={"q": {"i3": 3}}
    )
    with pytest.raises(EvaluationError, match=message):
        choose_cases(both, SourceOptions(**options))  # type: ignore[arg-type]
    assert choose_cases(both, SourceOptions(judged=True, least_rating=3)).cases[0].relevant == (3,)


def test_judged_queries_of_a_catalogue_without_any_are_refused_by_their_files() -> None:
    with pytest.raises(EvaluationError, match=r"it has none: give it queries\.tsv and qrels\.tsv"):
        choose_cases(catalogue(sequences={"ada": ("i0", "i1", "i2")}), SourceOptions(judged=True))
