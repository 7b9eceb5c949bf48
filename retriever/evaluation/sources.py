"""Which cases a person asks for: from files of examples, a time split, or the catalogue's judged queries.

What must hold: one source at a time, and an option of another source is refused, not passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue
from models.tables.catalogues import read_item_ids
from retriever.evaluation.cases import CaseSet, EvaluationCase, EvaluationError, of_example_files, of_judgements
from retriever.evaluation.splits import (
    SplitData,
    TimeSplit,
    after,
    case_set,
    last_share,
    leave_last_out,
    moment,
    read_interactions,
    split_by_time,
)

LEAST_RATING: Final = 2  # of 0 to 3: what people called good
Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class SourceOptions:
    """As given on the command line; ``None`` and ``False``: not given."""

    examples: Path | None = None
    validation: Path | None = None
    training: Path | None = None
    interactions: Path | None = None
    leave_last_out: bool = False
    after: str | None = None
    last_share: float | None = None
    judged: bool = False
    least_rating: int | None = None


def choose_cases(catalogue: Catalogue, options: SourceOptions, embed: Embed | None = None) -> CaseSet:
    """The cases of the source that the options name; without one, the catalogue's sequences (leave last out), or else its judged
    queries. ``embed``: embeddings float32 (T, D) of texts, for queries that the catalogue has none of.

    Raises ``EvaluationError`` for options that do not belong together.
    """
    _require_one_source(options, sequences=bool(catalogue.sequences))
    if options.examples is not None:
        found = of_example_files(catalogue, options.examples, options.validation, options.training)
    elif _is_split(options) or (catalogue.sequences and not options.judged):
        found = case_set(catalogue, choose_split(catalogue, options))
    elif catalogue.queries and catalogue.qrels:
        rating = LEAST_RATING if options.least_rating is None else options.least_rating
        found = of_judgements(catalogue, rating, options.training)
    elif options.judged:
        raise EvaluationError(
            "--judged asks the catalogue's judged queries, and it has none: give it queries.tsv and qrels.tsv, or leave --judged "
            "out"
        )
    else:
        raise EvaluationError(
            "there is nothing to evaluate on: the catalogue has no sequences.tsv, nor queries.tsv and qrels.tsv. Give examples "
            "(--examples), or user, item and time (--interactions)"
        )
    return _with_embeddings(found, catalogue, embed)


def choose_split(catalogue: Catalogue, options: SourceOptions) -> SplitData:
    """The time split that the options name."""
    _require_one_source(options, sequences=bool(catalogue.sequences))
    if options.interactions is None:
        if options.after is not None or options.last_share is not None:
            raise EvaluationError(
                "a split at a time needs times, and the catalogue's sequences have none: give --interactions with user, item and "
                "time, or --leave-last-out"
            )
        if not catalogue.sequences:
            raise EvaluationError("the catalogue has no sequences.tsv to split: give --interactions, or --examples")
        return leave_last_out(catalogue.sequences)
    found = read_interactions(options.interactions)
    if options.leave_last_out:
        sequences: dict[str, list[str]] = {}
        for one in sorted(found, key=lambda one: one.time):
            sequences.setdefault(one.user, []).append(one.item)
        return leave_last_out(sequences)
    if options.after is not None:
        try:
            split: TimeSplit = after(found, moment(options.after))
        except ValueError:
            raise EvaluationError(
                f"--after {options.after!r} is no time: give a number or ISO 8601, such as 2026-05-01"
            ) from None
    else:
        split = last_share(found, 0.1 if options.last_share is None else options.last_share)
    return split_by_time(found, split)


def arrived_rows(catalogue: Catalogue, path: Path) -> tuple[int, ...]:
    """Rows of the items that a file names as new. Raises ``EvaluationError`` if the catalogue has none of them."""
    rows = {item.id: row for row, item in enumerate(catalogue.items)}
    named = read_item_ids(path)
    found = tuple(rows[item] for item in named if item in rows)
    if not found:
        raise EvaluationError(f"none of the {len(named):,} items of {path} is in the catalogue: name items that are")
    return found


def _is_split(options: SourceOptions) -> bool:
    given = (options.interactions, options.after, options.last_share)
    return options.leave_last_out or any(one is not None for one in given)


def _require_one_source(options: SourceOptions, *, sequences: bool) -> None:
    """``sequences``: the catalogue has some, which are split where no source is named."""
    splits = {
        "--leave-last-out": options.leave_last_out,
        "--after": options.after is not None,
        "--last-share": options.last_share is not None,
    }
    named = [name for name, given in splits.items() if given]
    if len(named) > 1:
        raise EvaluationError(f"{' and '.join(named)} are different splits: give one of them")
    split = named or (["--interactions"] if options.interactions is not None else [])
    sources = [
        *(["--examples"] if options.examples is not None else []), *split, *(["--judged"] if options.judged else []),
    ]  # fmt: skip
    if len(sources) > 1:
        raise EvaluationError(f"{' and '.join(sources)} are different sources of cases: give one of them")
    if options.validation is not None and options.examples is None:
        raise EvaluationError("--validation goes with --examples: a split has a validation part of its own")
    split = split or (["the catalogue's sequences"] if sequences and not sources else [])
    if options.training is not None and split:
        raise EvaluationError("--training goes with --examples and --judged: what came before a split is known")
    if options.least_rating is not None and (options.examples is not None or split):
        cases = "--examples" if options.examples is not None else split[0]
        raise EvaluationError(
            f"--least-rating is for judged queries, and the cases are of {cases}: give --judged, or leave it away"
        )


def _with_embeddings(found: CaseSet, catalogue: Catalogue, embed: Embed | None) -> CaseSet:
    """The cases with the rows of their queries' embeddings: the catalogue's, or those of ``embed``."""
    texts = [query.text for query in catalogue.queries] if catalogue.query_embeddings is not None else []
    rows = {text: row for row, text in enumerate(texts)}
    matrices = [catalogue.query_embeddings] if catalogue.query_embeddings is not None else []
    if embed is not None:
        wanted = dict.fromkeys(case.query for case in (*found.cases, *found.validation) if case.query.strip())
        if missing := [text for text in wanted if text not in rows]:
            rows |= {text: len(rows) + number for number, text in enumerate(missing)}
            matrices.append(embed(missing))
    if not matrices:
        return found

    def embedded(cases: Sequence[EvaluationCase]) -> tuple[EvaluationCase, ...]:
        return tuple(
            replace(case, query_row=rows.get(case.query, -1)) if case.query_row < 0 else case for case in cases
        )

    return replace(
        found,
        cases=embedded(found.cases),
        validation=embedded(found.validation),
        query_embeddings=np.concatenate(matrices),
    )
