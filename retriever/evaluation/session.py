"""One evaluation from files to figures: cases, references, the product's answers, with progress on the way.

What must hold: what can be known to be wrong (cases, groups, names of bounds) is refused before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console

from models.catalogue import Catalogue
from models.progress import WorkProgress, WorkTask
from retriever.client import Client
from retriever.evaluation.answers import Answered, Ask, answer_cases, live, offline, temporary_index
from retriever.evaluation.bounds import Bound, require_known
from retriever.evaluation.evaluation import Evaluation, Question, evaluate, question
from retriever.evaluation.references import Reference, references
from retriever.evaluation.sources import Embed, SourceOptions, arrived_rows, choose_cases
from streamer.settings import Settings

Weights = Literal["catalogue", "popularity"]
WEIGHTS: Final = ("catalogue", "popularity")
AGAINST: Final = "against"  # the other bundle, among the systems that the product is compared with
UNSEEN_WEIGHT: Final = 0.5  # of an item that nobody took, where weights are occurrences
DEFAULT_AT: Final = (1, 5, 10, 50)


@dataclass(frozen=True)
class Options:
    """What an evaluation is of. ``index``: search this one instead of one made of the catalogue; ``live``: ask over the topics;
    ``send_embeddings``: a query that has an embedding brings it;
    ``most_cases``: no more than so many; ``against``: another bundle, asked the same over an index of its own.
    """

    sources: SourceOptions
    at: tuple[int, ...] = DEFAULT_AT
    by: tuple[str, ...] = ()
    head_share: float = 0.1
    new_items: Path | None = None
    most_cases: int | None = None
    index: Path | None = None
    weights: Weights = "catalogue"
    live: bool = False
    seconds_a_query: float = 30.0
    send_embeddings: bool = True
    bounds: tuple[Bound, ...] = ()
    against: Path | None = None
    resamples: int = 1000
    seed: int = 0


def run_evaluation(
    settings: Settings, catalogue: Catalogue, options: Options, console: Console, embed: Embed | None = None
) -> Evaluation:
    """``embed``: embeddings of the queries' texts, for the neighbours that the product is compared with."""
    found = choose_cases(catalogue, options.sources, embed)
    if options.most_cases is not None:
        found = found.sampled(options.most_cases, options.seed)
    arrived = arrived_rows(catalogue, options.new_items) if options.new_items is not None else ()
    asked = question(
        found,
        catalogue,
        options.at,
        by=options.by,
        head_share=options.head_share,
        arrived=arrived,
        others=() if options.against is None else (AGAINST,),
    )
    require_known(options.bounds, asked.names())
    with WorkProgress(console) as work:
        answered = _answered(settings, asked, options, work, "sidstream")
        compared = [*_references(asked, work), *_other_bundle(settings, asked, options, work)]
    return evaluate(asked, answered, compared, resamples=options.resamples, seed=options.seed)


def _answered(settings: Settings, asked: Question, options: Options, work: WorkProgress, name: str) -> Answered:
    cases = asked.case_set.cases
    with _ask(settings, asked, options) as ask:
        task = work.task(name, unit="queries", total=len(cases))
        answered = answer_cases(
            ask,
            cases,
            asked.catalogue,
            asked.width,
            settings.retriever,
            lambda done, total: task.update(done, total),
            at_once=settings.retriever.batch_size,
            embeddings=asked.case_set.query_embeddings if options.send_embeddings else None,
        )
        task.end()
    return answered


@contextmanager
def _ask(settings: Settings, asked: Question, options: Options) -> Iterator[Ask]:
    if options.live:
        with Client(settings) as client:
            yield live(client, options.seconds_a_query)
    elif options.index is not None:
        with offline(settings, options.index) as ask:
            yield ask
    else:
        weights = _weights(asked, options.weights)
        with temporary_index(settings, asked.catalogue, weights) as path, offline(settings, path) as ask:
            yield ask


def _weights(asked: Question, weights: Weights) -> npt.NDArray[np.float64]:
    if weights == "popularity":
        return asked.case_set.training.popularity + UNSEEN_WEIGHT
    return np.array([item.weight for item in asked.catalogue.items])


def _other_bundle(settings: Settings, asked: Question, options: Options, work: WorkProgress) -> Sequence[Reference]:
    """The other bundle's lists, as a reference; none if there is no other bundle."""
    if options.against is None:
        return ()
    other = settings.model_copy(update={"bundle": options.against})
    answered = _answered(other, asked, options, work, f"the bundle {options.against}")
    about = ", ".join(f"{name} {value}" for name, value in answered.about.items())
    return [Reference(AGAINST, answered.lists, f"the bundle {options.against}: {about}")]


def _references(asked: Question, work: WorkProgress) -> Sequence[Reference]:
    tasks: dict[str, WorkTask] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            for task in tasks.values():
                task.end()
            tasks[what] = work.task(what, unit="cases", total=total)
        tasks[what].update(done, total)

    found = references(asked.reference_data, asked.case_set.cases, asked.case_set.validation, asked.width, tell)
    for task in tasks.values():
        task.end()
    return found
