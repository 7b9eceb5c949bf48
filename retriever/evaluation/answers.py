"""What the product answers to cases: offline by its own answering path in this process, or live over the topics.

What must hold: a case is asked as a client asks it (``as_query``), and answered by ``Answerer`` or by a running retriever,
never by a search of our own; a query that gets no answer is an empty list with its reason counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundles.bundle import Bundle
from models.bundles.item_encoder import ItemEncoder
from models.catalogue import Catalogue
from models.dense.vectors import quantise
from models.errors import SidstreamError
from retriever.client import Client
from retriever.evaluation.cases import EvaluationCase, EvaluationError
from retriever.evaluation.metrics import RankedLists
from store.writing.catalogue_index import write_catalogue
from streamer.events.records import Answer, AnswerItem, Query
from streamer.settings import Settings
from streamer.settings.retriever import RetrieverSettings

Progress = Callable[[int, int], None]  # cases done, of how many
Ask = Callable[[Sequence[Query]], "list[Answer | None]"]

NO_ANSWER: Final = "no answer in time"
NOTHING_ASKED: Final = "EmptyQuery"


@dataclass
class Answered:
    """``lists``: of the cases, without their history; ``unanswered``: reason → how many; ``foreign``: how many items were named
    that the catalogue does not have; ``about``: model, layout and codebook of the answers; ``seconds`` of answering.
    """

    lists: RankedLists
    unanswered: Counter[str]
    foreign: int
    about: dict[str, str]
    seconds: float


def as_query(
    case: EvaluationCase,
    ids: Sequence[str],
    width: int,
    settings: RetrieverSettings,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> Query:
    """A case as a client asks it, for ``width`` items; the retriever leaves out those of the history by itself.

    ``embeddings``: float32 (Q, D) of queries, of which the case's is sent, if it has one.
    """
    history = tuple(ids[row] for row in case.history)
    newest = history[max(0, len(history) - settings.maximum_history) :]
    embedding: bytes | msgspec.UnsetType = msgspec.UNSET
    if embeddings is not None and case.query_row >= 0:
        embedding = embeddings[case.query_row].astype("<f4").tobytes()
    return Query(text=case.query, history=newest, user=case.user, limit=width, embedding=embedding)


def answer_cases(
    ask: Ask,
    cases: Sequence[EvaluationCase],
    catalogue: Catalogue,
    width: int,
    settings: RetrieverSettings,
    progress: Progress,
    *,
    at_once: int,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> Answered:
    """Asks all cases, ``at_once`` in one call of ``ask``; ``embeddings``: those of queries that are sent, see ``as_query``."""
    if width > settings.maximum_limit:
        raise EvaluationError(
            f"a list of {width} items is asked for, and retriever.maximum_limit is {settings.maximum_limit}: measure --at less, "
            "or raise the setting"
        )
    collected = _Collected(catalogue, width)
    started = time.monotonic()
    for start in range(0, len(cases), at_once):
        part = cases[start : start + at_once]
        queries = [as_query(case, collected.ids, width, settings, embeddings) for case in part]
        asked = [query for query in queries if _asks(query)]
        answers = iter(ask(asked) if asked else ())
        for case, query in zip(part, queries, strict=True):
            if _asks(query):
                collected.take(case, next(answers))
            else:
                collected.take_none(NOTHING_ASKED)
        progress(start + len(part), len(cases))
    return collected.all(time.monotonic() - started)


@dataclass
class _Collected:
    catalogue: Catalogue
    width: int
    lists: list[tuple[list[int], list[str]]] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    about: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = [item.id for item in self.catalogue.items]
        self.rows = {identity: row for row, identity in enumerate(self.ids)}

    def take_none(self, reason: str) -> None:
        """A case without an answer."""
        self.unanswered[reason] += 1
        self.lists.append(([], []))

    def take(self, case: EvaluationCase, answer: Answer | None) -> None:
        """An answer, its history's items taken out."""
        if answer is None or answer.error is not None:
            self.take_none(NO_ANSWER if answer is None or answer.error is None else answer.error.kind)
            return
        nowhere = len(self.ids)  # an item that the catalogue does not have keeps its place in the list
        owned = set(case.history)
        named = [(self.rows.get(item.item_id, nowhere), _found_by(item)) for item in answer.items]
        named = [pair for pair in named if pair[0] not in owned][: self.width]
        rows = [row for row, _ in named]
        self.foreign += rows.count(nowhere)
        self.lists.append((rows, [leg for _, leg in named]))
        if not self.about:
            self.about = {
                "model": answer.model,
                "codebook": answer.codebook,
                "layout": f"{answer.layout} ({answer.layout_mode})",
            }

    def all(self, seconds: float) -> Answered:
        legs = tuple(sorted({leg for _, found in self.lists for leg in found}))
        found_by = RankedLists.of([[legs.index(leg) for leg in found] for _, found in self.lists], self.width).items
        lists = RankedLists(RankedLists.of([rows for rows, _ in self.lists], self.width).items, found_by, legs)
        return Answered(lists, self.unanswered, self.foreign, self.about, seconds)


def _asks(query: Query) -> bool:
    """Whether there is anything in it; the retriever refuses it otherwise (``Admission.decode``)."""
    embedded = query.embedding is not msgspec.UNSET
    return bool(query.text.strip() or query.history or query.user is not None or embedded)


def _found_by(item: AnswerItem) -> str:
    """Which leg of the retriever found an item; where it has one leg alone, the model."""
    return str(getattr(item, "found_by", None) or "model")


@contextmanager
def offline(settings: Settings, index: Path) -> Iterator[Ask]:
    """Answers by the bundle's model over an index, in this process, by the retriever's own path and settings."""
    from retriever.answering.answers import Answerer
    from retriever.answering.asked import Asked
    from retriever.serving.loading import load_model, open_bundle
    from store.reading.reader import IndexReader

    own, bundle = settings.retriever, open_bundle(settings.bundle, settings.retriever)
    model, prompts = load_model(bundle, settings)
    with IndexReader(index) as reader:
        with reader.snapshot() as snapshot:
            if snapshot.partitions:
                raise EvaluationError(
                    f"{index} is a shard (the partitions {snapshot.partitions} of item-codes), and answers from it are none of "
                    "the whole catalogue: ask the running retrievers (--live), or leave --index out"
                )
        filterable = settings.attributes.filterable
        answerer = Answerer(
            bundle=bundle, model=model, prompts=prompts, reader=reader, settings=own, filterable=filterable
        )
        yield lambda queries: [*answerer.answers([Asked(str(place), query) for place, query in enumerate(queries)])]


def live(client: Client, seconds_a_query: float) -> Ask:
    """Answers of the running retrievers; a query without one in time has none.

    Raises ``EvaluationError`` if none of the first queries is answered: nobody is there.
    """
    heard = False

    def ask(queries: Sequence[Query]) -> list[Answer | None]:
        nonlocal heard
        answers = client.ask_within(queries, timeout_seconds=seconds_a_query)
        heard = heard or any(answer is not None for answer in answers)
        if not heard:
            raise EvaluationError(
                f"none of the first {len(queries)} queries was answered within {seconds_a_query:g} s: is a retriever running? "
                "`sidstream status` tells"
            )
        return answers

    return ask


@contextmanager
def temporary_index(settings: Settings, catalogue: Catalogue, weights: npt.NDArray[np.float64]) -> Iterator[Path]:
    """An index of the whole catalogue under the bundle's codebook and layout, as the pipeline would make it; removed at the end.

    ``weights``: (N,) of the items.
    """
    bundle = Bundle.open(settings.bundle)
    if catalogue.dimension != bundle.manifest.dimension:
        raise SidstreamError(
            f"the embeddings of the catalogue have {catalogue.dimension} dimensions, the bundle {settings.bundle} was fitted on "
            f"{bundle.manifest.dimension}: give the catalogue that it was fitted on"
        )
    codes = ItemEncoder.of(bundle).encode(catalogue.embeddings, [item.id.encode() for item in catalogue.items])
    vectors = quantise(catalogue.embeddings).encode() if settings.assigner.vectors else None
    with TemporaryDirectory(prefix="sidstream-evaluate-") as directory:
        path = Path(directory) / "index"
        write_catalogue(
            path, bundle.layout, catalogue.items, codes, weights, vectors=vectors, topic=settings.topics.item_codes
        )
        yield path
