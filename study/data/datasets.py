"""The study's three sets: next item on amazon_games, query → product on chorus_icecat, a planted hourglass.

What must hold: nothing that is measured was trained on. On amazon_games each user's last item is the test, the last but
one is for choosing settings, the rest trains (leave-one-out); on chorus_icecat the judged queries are the test and
training queries are made from the items' own text; with ``arrivals`` a fixed share of the items arrives only after
training: they are in the index, and in no training history or query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue, CatalogueItem
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError
from models.examples.made_queries import examples_from_catalogue
from study.data.synthetic import planted_hourglass

DatasetName = Literal["amazon_games", "chorus_icecat", "planted", "tiny"]
Part = Literal["test", "valid"]
Space = Literal["given", "towers", "towers and queries"]
TOWERS: Final[tuple[Space, ...]] = ("towers", "towers and queries")

DATA: Final = Path(__file__).parents[3] / "shared" / "data"
_RELEVANT: Final = 2  # ratings run from 0 to 3; the data's own notes count from 2
_ARRIVING_SHARE: Final = 0.1
PLANTED: Final[dict[DatasetName, tuple[int, int, int]]] = {  # items, M, users
    "planted": (12_000, 64, 24_000),
    "tiny": (1_500, 32, 1_200),
}
QUERIES_AN_ITEM: Final = 4


@dataclass(frozen=True)
class TestCase:
    """What is asked, and the items (rows) that answer it. ``case``: number of the query in its catalogue, or of the
    user.
    """

    __test__ = False  # pytest: no class of tests

    case: int
    relevant: tuple[int, ...]
    query: str = ""
    history: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Items as rows: ``embeddings`` float32 (N, D), ``titles``, ``histories`` and ``queries`` (text, item) to train on,
    ``cases`` to measure on; ``arrived``: bool (N,), items that came after training; ``popularity``: (N,) occurrences in
    training; ``held_back``: what was held back, as ``load`` was told; ``space``: whose embeddings they are, those of the set's
    files or of towers of our own.
    """

    name: DatasetName
    embeddings: npt.NDArray[np.float32]
    titles: tuple[str, ...]
    histories: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[str, int], ...]
    cases: tuple[TestCase, ...]
    arrived: npt.NDArray[np.bool_]
    popularity: npt.NDArray[np.int64]
    held_back: Literal["", "arrivals", "choosing"] = ""
    query_embeddings: npt.NDArray[np.float32] | None = field(default=None)
    space: Space = "given"


def is_present(name: DatasetName) -> bool:
    """Whether the set's files are there; the synthetic ones always are."""
    return name in PLANTED or (DATA / name).is_dir()


@cache
def load(name: DatasetName, part: Part = "test", *, arrivals: bool = False, choosing: bool = False) -> Dataset:
    """The set, always the same. ``choosing``: a further tenth of the items is held back from training: arrivals to choose by.

    Raises ``SidstreamError`` if its files are not there.
    """
    if not is_present(name):
        raise SidstreamError(
            f"the study's data {name} is not beside the project ({DATA.parent.name}/{DATA.name}/{name}): "
            "put it there, or run `sidstream study --quick`, which needs none"
        )
    if name == "amazon_games":
        data = _games(part)
    elif name == "chorus_icecat":
        data = _chorus()
    else:
        data = _planted(name, part)
    if choosing and not arrivals:
        raise SidstreamError("items are held back to choose by only where others arrive: give arrivals too")
    return _hold_back(data, choosing=choosing) if arrivals else data


def _games(part: Part) -> Dataset:
    catalogue = Catalogue.read(DATA / "amazon_games")
    rows = {item.id: row for row, item in enumerate(catalogue.items)}
    sequences = [tuple(rows[item] for item in sequence) for sequence in catalogue.sequences.values()]
    return _next_item("amazon_games", catalogue.embeddings, [item.title for item in catalogue.items], sequences, part)


def _next_item(
    name: DatasetName,
    embeddings: npt.NDArray[np.float32],
    titles: Sequence[str],
    sequences: Sequence[tuple[int, ...]],
    part: Part,
) -> Dataset:
    last = -1 if part == "test" else -2
    long_enough = [sequence for sequence in sequences if len(sequence) >= 3]
    histories = tuple(sequence[:-2] for sequence in long_enough)
    return Dataset(
        name=name,
        embeddings=embeddings,
        titles=tuple(titles),
        histories=histories,
        queries=(),
        cases=tuple(
            TestCase(case=number, relevant=(sequence[last],), history=sequence[:last])
            for number, sequence in enumerate(long_enough)
        ),
        arrived=np.zeros(len(embeddings), dtype=bool),
        popularity=_occurrences(histories, len(embeddings)),
    )


def _chorus() -> Dataset:
    catalogue = Catalogue.read(DATA / "chorus_icecat")
    rows = {item.id: row for row, item in enumerate(catalogue.items)}
    examples = examples_from_catalogue(catalogue.items, per_item=QUERIES_AN_ITEM, seed=0)
    judged = [
        TestCase(
            case=number,
            query=query.text,
            relevant=tuple(
                rows[item] for item, rating in catalogue.qrels.get(query.id, {}).items() if rating >= _RELEVANT
            ),
        )
        for number, query in enumerate(catalogue.queries)
    ]
    return Dataset(
        name="chorus_icecat",
        embeddings=catalogue.embeddings,
        titles=tuple(item.title for item in catalogue.items),
        histories=(),
        queries=tuple((example.query, rows[example.item]) for example in examples),
        cases=tuple(case for case in judged if case.relevant),
        arrived=np.zeros(len(catalogue), dtype=bool),
        popularity=np.ones(len(catalogue), dtype=np.int64),
        query_embeddings=catalogue.query_embeddings,
    )


@cache
def described_items(name: DatasetName) -> tuple[CatalogueItem, ...]:
    """What the catalogue says of each item of a set, whose id is its row."""
    if name in PLANTED:
        return tuple(CatalogueItem(id=str(row), title=title) for row, title in enumerate(load(name).titles))
    items = Catalogue.read(DATA / name).items
    return tuple(msgspec.structs.replace(item, id=str(row)) for row, item in enumerate(items))


@cache
def fresh_queries(name: DatasetName) -> tuple[tuple[str, int], ...]:
    """(text, row): a query an item, made as the training queries were from another seed, for sets that have queries."""
    catalogue = Catalogue.read(DATA / name)
    rows = {item.id: row for row, item in enumerate(catalogue.items)}
    examples = examples_from_catalogue(catalogue.items, per_item=1, seed=1)
    return tuple((example.query, rows[example.item]) for example in examples)


def _planted(name: DatasetName, part: Part) -> Dataset:
    items, size, users = PLANTED[name]
    embeddings, _ = planted_hourglass(items, seed=0, size=size)
    sequences = neighbour_walks(embeddings, users=users, longest=8, seed=0)
    return _next_item(name, embeddings, [f"item {row}" for row in range(items)], sequences, part)


def planted_codebook(name: DatasetName) -> Codebook:
    """The codebook that a synthetic set was made from. Raises ``SidstreamError`` for a real one."""
    if name not in PLANTED:
        raise SidstreamError(f"{name} was not made from a codebook: fit one by k-means or as an RQ-VAE")
    items, size, _ = PLANTED[name]
    return planted_hourglass(items, seed=0, size=size)[1]


def neighbour_walks(
    embeddings: npt.NDArray[np.float32], *, users: int, longest: int, seed: int, neighbours: int = 8
) -> list[tuple[int, ...]]:
    """Histories of 4 to ``longest`` items in which the next item is mostly one of the nearest neighbours of the last, the
    nearer the likelier; now and then a popular item (popularity falls as 1 / rank).
    """
    random = np.random.default_rng(seed)
    count = len(embeddings)
    nearest = np.empty((count, neighbours), dtype=np.int64)
    squared = (embeddings**2).sum(axis=1)
    for start in range(0, count, 1_000):
        distances = squared - 2 * embeddings[start : start + 1_000] @ embeddings.T
        distances[np.arange(len(distances)), start + np.arange(len(distances))] = np.inf
        nearest[start : start + 1_000] = np.argsort(distances, axis=1)[:, :neighbours]
    nearer = 1 / np.arange(1, neighbours + 1)
    popular = 1 / np.arange(1, count + 1)
    by_rank = random.permutation(count)
    walks = np.empty((users, longest), dtype=np.int64)
    walks[:, 0] = by_rank[random.choice(count, size=users, p=popular / popular.sum())]
    for step in range(1, longest):
        near = nearest[walks[:, step - 1], random.choice(neighbours, size=users, p=nearer / nearer.sum())]
        jump = by_rank[random.choice(count, size=users, p=popular / popular.sum())]
        walks[:, step] = np.where(random.random(users) < 0.9, near, jump)
    lengths = random.integers(4, longest + 1, size=users)
    return [tuple(walk[:length]) for walk, length in zip(walks.tolist(), lengths.tolist(), strict=True)]


def _hold_back(data: Dataset, *, choosing: bool) -> Dataset:
    arrived = np.random.default_rng(1).random(len(data.embeddings)) < _ARRIVING_SHARE
    if choosing:
        arrived |= np.random.default_rng(2).random(len(data.embeddings)) < _ARRIVING_SHARE
    histories = tuple(tuple(item for item in history if not arrived[item]) for history in data.histories)
    return replace(
        data,
        histories=histories,
        queries=tuple((query, item) for query, item in data.queries if not arrived[item]),
        arrived=arrived,
        held_back="choosing" if choosing else "arrivals",
        popularity=_occurrences(histories, len(arrived)) if histories else data.popularity,
    )


def _occurrences(histories: Sequence[Sequence[int]], items: int) -> npt.NDArray[np.int64]:
    flat = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
    return np.bincount(flat, minlength=items)
