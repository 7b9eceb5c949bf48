"""What an evaluation asks: cases with their relevant items, and what was known before them; from a user's files.

What must hold: items are rows of the catalogue; an id that the catalogue does not have is counted and named, never dropped in
silence; a case without any relevant item that can be found is left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue
from models.data_files import DataFileError
from models.dense.pair_counts import Pairs, flattened
from models.errors import SidstreamError
from models.examples.records import TrainingExample, read_examples

UNKNOWN_TARGET: Final = "relevant items that the catalogue does not have"
UNKNOWN_HISTORY: Final = "history items that the catalogue does not have"
OWNED_TARGET: Final = "relevant items that are in the history themselves, which no list may name"
LEFT_OUT_CASES: Final = "cases without a relevant item that can be found"
_NAMED: Final = 5  # ids of a kind that are shown


class EvaluationError(SidstreamError):
    """What is to be evaluated on is missing, empty or contradicts itself."""


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """One question. ``history``: rows, oldest first; ``relevant``: rows that answer it, with their ``gains`` (1, or a rating);
    ``query_row``: the row of its embedding among the query embeddings, -1 without one.
    """

    query: str
    user: str | None
    history: tuple[int, ...]
    relevant: tuple[int, ...]
    gains: tuple[float, ...]
    query_row: int = -1


@dataclass
class Remarks:
    """What could not be used: by kind, how often, and the first few different ids."""

    counts: Counter[str] = field(default_factory=Counter)
    ids: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, kind: str, identity: str = "", count: int = 1) -> None:
        """Counts a kind once more."""
        self.counts[kind] += count
        named = self.ids.setdefault(kind, {})
        if identity and len(named) < _NAMED:
            named[identity] = None

    def lines(self) -> Iterator[str]:
        """One sentence a kind, with examples."""
        for kind, count in self.counts.items():
            examples = ", ".join(self.ids[kind])
            yield f"{count:,} {kind}" + (f", such as {examples}" if examples else "")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What was known before the cases. ``pairs``: of places in histories; ``popularity``: float64 (N,) occurrences; ``seen``:
    bool (N,); ``source``: in words, where that is from. Without any, ``popularity`` is the catalogue's weights.
    """

    pairs: Pairs
    popularity: npt.NDArray[np.float64]
    seen: npt.NDArray[np.bool_]
    source: str

    @property
    def has_histories(self) -> bool:
        """Whether there is anything that items could have occurred together in."""
        return len(self.pairs.first) > 0

    @cached_property
    def by_popularity(self) -> npt.NDArray[np.int64]:
        """Rows (N,), the most popular first; equal ones by row."""
        return np.lexsort((np.arange(len(self.popularity)), -self.popularity))

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]], items: int, source: str) -> TrainingData:
        """Of whole histories, oldest item first."""
        flat, _ = flattened(sequences)
        popularity = np.bincount(flat, minlength=items).astype(np.float64)
        return cls(Pairs.of_sequences(sequences), popularity, popularity > 0, source)

    @classmethod
    def of_examples(
        cls, histories: Sequence[Sequence[int]], targets: Sequence[int], items: int, source: str
    ) -> TrainingData:
        """Of examples, whose histories may overlap: popularity counts targets, and a pair leads to a target."""
        popularity = np.bincount(np.asarray(targets, dtype=np.int64), minlength=items).astype(np.float64)
        seen = popularity > 0
        seen[flattened(histories)[0]] = True
        return cls(Pairs.of_examples(histories, targets), popularity, seen, source)

    @classmethod
    def of_weights(cls, weights: Sequence[float]) -> TrainingData:
        """Nothing but the catalogue's weights: no item is new."""
        nothing = Pairs.of_sequences(())
        every = np.ones(len(weights), dtype=bool)
        return cls(nothing, np.asarray(weights, dtype=np.float64), every, "the catalogue's weights")


@dataclass(frozen=True, eq=False)
class CaseSet:
    """``cases``: measured; ``validation``: settings of references are chosen on; ``training``: what came before both;
    ``query_embeddings``: float32 (Q, D) or None; ``source``: in words, where the cases are from.
    """

    cases: tuple[EvaluationCase, ...]
    validation: tuple[EvaluationCase, ...]
    training: TrainingData
    source: str
    remarks: Remarks
    query_embeddings: npt.NDArray[np.float32] | None = None

    def require_some(self) -> None:
        """Raises ``EvaluationError`` where nothing is left to measure."""
        if not self.cases:
            why = "; ".join(self.remarks.lines())
            raise EvaluationError(
                f"there is no case to evaluate on in {self.source}" + (f": {why}" if why else "")
                + ". Give examples of items that the catalogue has (--examples), sequences or interactions"
            )  # fmt: skip

    def sampled(self, most: int, seed: int) -> CaseSet:
        """At most so many of the cases, drawn without replacement; the same for the same seed, in their order."""
        if len(self.cases) <= most:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.cases), size=most, replace=False))
        cases = tuple(self.cases[number] for number in chosen.tolist())
        source = f"{self.source}, {most:,} of {len(self.cases):,} cases drawn with seed {seed}"
        return CaseSet(cases, self.validation, self.training, source, self.remarks, self.query_embeddings)


class CaseMaker:
    """Makes cases of ids, and remembers what it could not use."""

    def __init__(self, catalogue: Catalogue, remarks: Remarks) -> None:
        self.rows: Mapping[str, int] = {item.id: row for row, item in enumerate(catalogue.items)}
        self.remarks = remarks

    def case(
        self,
        history: Iterable[str],
        relevant: Mapping[str, float],
        *,
        query: str = "",
        user: str | None = None,
        query_row: int = -1,
    ) -> EvaluationCase | None:
        """``None`` if no relevant item can be found. Unknown items of the history are skipped, as the retriever does."""
        known = self.known(history)
        owned = set(known)
        found: dict[int, float] = {}
        for item, gain in relevant.items():
            row = self.rows.get(item)
            if row is None:
                self.remarks.add(UNKNOWN_TARGET, item)
            elif row in owned:
                self.remarks.add(OWNED_TARGET, item)
            else:
                found[row] = gain
        if not found:
            self.remarks.add(LEFT_OUT_CASES)
            return None
        return EvaluationCase(query, user, known, tuple(found), tuple(found.values()), query_row)

    def known(self, items: Iterable[str]) -> tuple[int, ...]:
        """Rows of the items that the catalogue has."""
        found = []
        for item in items:
            row = self.rows.get(item)
            if row is None:
                self.remarks.add(UNKNOWN_HISTORY, item)
            else:
                found.append(row)
        return tuple(found)

    def of_examples(self, examples: Iterable[TrainingExample]) -> tuple[EvaluationCase, ...]:
        """One case an example; examples of the same query, user and history are one case with several relevant items."""
        together: dict[tuple[str, str | None, tuple[str, ...]], dict[str, float]] = {}
        for example in examples:
            together.setdefault((example.query, example.user, example.history), {})[example.item] = 1.0
        cases = (
            self.case(history, relevant, query=query, user=user)
            for (query, user, history), relevant in together.items()
        )
        return tuple(case for case in cases if case is not None)


def read_some_examples(path: Path) -> list[TrainingExample]:
    """The examples of a file as ``sidstream train`` reads them. Raises ``DataFileError`` if there is none."""
    examples = list(read_examples(path))
    if not examples:
        raise DataFileError(
            f'{path} holds no example: give JSON lines like {{"query": "red shoes", "history": ["id"], "item": "id"}}'
        )
    return examples


def of_example_files(catalogue: Catalogue, examples: Path, validation: Path | None, training: Path | None) -> CaseSet:
    """Cases of files of examples. What was known before: ``training``; without it the catalogue's sequences, or its weights."""
    maker = CaseMaker(catalogue, Remarks())
    cases = maker.of_examples(read_some_examples(examples))
    aside = CaseMaker(catalogue, Remarks())  # what is wrong with the other files is no news of the cases
    chosen_on = aside.of_examples(read_some_examples(validation)) if validation is not None else ()
    return CaseSet(cases, chosen_on, _training(catalogue, training, aside), str(examples), maker.remarks)


def of_judgements(catalogue: Catalogue, least_rating: int, training: Path | None) -> CaseSet:
    """The catalogue's judged queries; relevant is what is rated ``least_rating`` or more, and its gain is its rating."""
    maker = CaseMaker(catalogue, Remarks())
    cases = []
    for row, query in enumerate(catalogue.queries):
        ratings = {
            item: float(rating)
            for item, rating in catalogue.qrels.get(query.id, {}).items()
            if rating >= max(1, least_rating)
        }
        if not ratings:
            maker.remarks.add(f"queries without a product rated {least_rating} or more", query.text)
            continue
        case = maker.case((), ratings, query=query.text, query_row=row)
        cases += [case] if case is not None else []
    aside = CaseMaker(catalogue, Remarks())
    return CaseSet(
        tuple(cases),
        (),
        _training(catalogue, training, aside),
        f"the catalogue's judged queries, rating {least_rating} or more",
        maker.remarks,
        catalogue.query_embeddings,
    )


def _training(catalogue: Catalogue, path: Path | None, maker: CaseMaker) -> TrainingData:
    items = len(catalogue)
    if path is not None:
        examples = [example for example in read_some_examples(path) if example.item in maker.rows]
        if not examples:
            raise EvaluationError(
                f"no example of {path} leads to an item of the catalogue: name what it was trained on"
            )
        histories = [maker.known(example.history) for example in examples]
        return TrainingData.of_examples(histories, [maker.rows[example.item] for example in examples], items, str(path))
    if catalogue.sequences:
        sequences = [maker.known(sequence) for sequence in catalogue.sequences.values()]
        return TrainingData.of_sequences(sequences, items, "the catalogue's sequences")
    return TrainingData.of_weights([item.weight for item in catalogue.items])
