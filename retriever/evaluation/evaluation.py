"""An evaluation: the product's lists and the references' on the same cases become figures with intervals, by group.

What must hold: all systems are measured on the same cases, with the same items left out of their lists; a figure stands beside
the number of its cases; differences are paired, product less reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.catalogue import Catalogue
from retriever.evaluation.answers import Answered
from retriever.evaluation.bootstrap import LEVEL, RESAMPLES, Resampled, resample
from retriever.evaluation.cases import CaseSet
from retriever.evaluation.groups import (
    ALL,
    HEAD,
    HEAD_SHARE,
    NEW,
    OLD,
    TAIL,
    Mask,
    attribute_groups,
    popularity_groups,
    row_groups,
)
from retriever.evaluation.metrics import METRICS, RankedLists, Relevant, measure
from retriever.evaluation.references import Reference, ReferenceData, reference_names

PRODUCT: Final = "sidstream"
Interval = tuple[float, float, float]  # the figure, and the lower and upper end of its interval


class SystemFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One system. ``figures``: group → metric@k → figure with interval; ``coverage``: k → share of the catalogue that is in some
    list; ``unanswered``: share of the cases without a list; ``differences``: the product's figures less this system's, none for
    the product; ``settings``: in words; ``tuned_on``: validation cases.
    """

    name: str
    figures: dict[str, dict[str, Interval]]
    coverage: dict[int, float]
    unanswered: float
    differences: dict[str, dict[str, Interval]] = {}
    settings: str = ""
    tuned_on: int = 0


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result. ``cases``: group → number of cases; ``groups``: what the groups are, in words; ``systems``: the product
    first; ``unanswered``: reason → queries; ``found_by``: leg of the retriever → share of the relevant items in its lists
    that it found; ``main``: the cutoff that tables show; ``remarks``: what could not be used;
    ``about``: model, codebook, layout; ``seconds``: of answering.
    """

    record_version: int = 1
    source: str
    training: str
    cases: dict[str, int]
    groups: dict[str, str]
    at: list[int]
    main: int
    systems: list[SystemFigures]
    unanswered: dict[str, int]
    found_by: dict[str, float]
    remarks: list[str]
    about: dict[str, str]
    seconds: float
    resamples: int
    level: float
    seed: int

    def named(self) -> dict[str, float]:
        """Every figure of the product by its name, as bounds know it (``retriever.evaluation.bounds``)."""
        product, *references = self.systems
        found = {f"coverage@{k}": share for k, share in product.coverage.items()} | {"unanswered": product.unanswered}
        found |= _flat(product.figures, "")
        for reference in references:
            found |= _flat(reference.differences, f"-{reference.name}")
        return found


@dataclass(frozen=True, eq=False)
class Question:
    """What is measured of a set of cases: ``rows`` group → bool (R,) of ``relevant``'s rows; ``words``: what the groups are;
    ``others``: names of systems that the product is compared with beside the references.
    """

    case_set: CaseSet
    catalogue: Catalogue
    relevant: Relevant
    rows: Mapping[str, Mask]
    words: Mapping[str, str]
    at: tuple[int, ...]
    others: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many items a list has."""
        return max(self.at)

    @property
    def main(self) -> int:
        """The cutoff that tables show: 10, or the one nearest to it."""
        return min(self.at, key=lambda k: (abs(k - 10), k))

    @property
    def reference_data(self) -> ReferenceData:
        """What the references know."""
        return ReferenceData(self.case_set.training, self.catalogue.embeddings, self.case_set.query_embeddings)

    def names(self) -> list[str]:
        """Of all figures that there will be, see ``Evaluation.named``."""
        figures = {
            group: {f"{metric}@{k}": (0.0, 0.0, 0.0) for metric in METRICS for k in self.at} for group in self.rows
        }
        found = [*_flat(figures, ""), *(f"coverage@{k}" for k in self.at), "unanswered"]
        for reference in (*reference_names(self.reference_data, self.case_set.cases), *self.others):
            found += _flat(figures, f"-{reference}")
        return found


def question(
    case_set: CaseSet,
    catalogue: Catalogue,
    at: Sequence[int],
    *,
    by: Sequence[str] = (),
    head_share: float = HEAD_SHARE,
    arrived: Sequence[int] = (),
    others: Sequence[str] = (),
) -> Question:
    """``at``: cutoffs; ``by``: attributes; ``arrived``: rows of items that came after training; ``others``: see ``Question``."""
    case_set.require_some()
    relevant = Relevant.of(case_set.cases)
    popular = popularity_groups(case_set.training, head_share, arrived)
    masks = popular | attribute_groups(catalogue.items, by, relevant)
    rows = row_groups(relevant, masks)
    source = case_set.training.source
    words = {
        ALL: "all relevant items",
        HEAD: f"the {head_share:.0%} most popular of the items that are not new, by {source}",
        TAIL: "the others that are not new",
        OLD: "all that are not new",
        NEW: f"items that are not in {source}" + (", or were named as having arrived later" if len(arrived) else ""),
    }
    in_words = {name: words.get(name, name) for name in rows}
    return Question(case_set, catalogue, relevant, rows, in_words, tuple(sorted(set(at))), tuple(others))


def evaluate(
    asked: Question,
    answered: Answered,
    references: Sequence[Reference],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Measures the product's answers and the references' lists."""
    catalogue = len(asked.catalogue)
    members = {name: asked.relevant.chosen(mask).members() for name, mask in asked.rows.items()}
    product = _resampled(asked, answered.lists, members, resamples, seed)
    systems = [_figures(asked, PRODUCT, answered.lists, product)]
    for reference in references:
        other = _resampled(asked, reference.lists, members, resamples, seed)
        difference = product.difference(other)
        systems.append(
            msgspec.structs.replace(
                _figures(asked, reference.name, reference.lists, other),
                differences=_by_group(asked, difference.point, difference.low, difference.high),
                settings=reference.settings,
                tuned_on=reference.tuned_on,
            )
        )
    remarks = list(asked.case_set.remarks.lines())
    if answered.foreign:
        remarks.append(
            f"{answered.foreign:,} items in the answers that the catalogue does not have: they keep their places"
        )
    if catalogue < asked.width:
        remarks.append(f"the catalogue has {catalogue:,} items, less than the {asked.width} that are looked at")
    return Evaluation(
        source=asked.case_set.source,
        training=asked.case_set.training.source,
        cases={name: int(mask.sum()) for name, mask in members.items()},
        groups=dict(asked.words),
        at=list(asked.at),
        main=asked.main,
        systems=systems,
        unanswered=dict(answered.unanswered.most_common()),
        found_by=_legs(asked, answered.lists),
        remarks=remarks,
        about=answered.about,
        seconds=round(answered.seconds, 3),
        resamples=resamples,
        level=LEVEL,
        seed=seed,
    )


def _resampled(
    asked: Question, lists: RankedLists, members: Mapping[str, Mask], resamples: int, seed: int
) -> Resampled:
    """Figures of all groups one after another, each metric by metric and cutoff by cutoff."""
    ranks = asked.relevant.ranks(lists)
    values = [measure(asked.relevant.chosen(mask), ranks[mask], asked.at) for mask in asked.rows.values()]
    count = len(METRICS) * len(asked.at)
    of_groups = np.repeat(np.array([members[name] for name in asked.rows]), count, axis=0)
    return resample(np.concatenate(values), of_groups, resamples=resamples, seed=seed)


def _figures(asked: Question, name: str, lists: RankedLists, resampled: Resampled) -> SystemFigures:
    return SystemFigures(
        name=name,
        figures=_by_group(asked, resampled.point, *resampled.interval()),
        coverage={k: lists.coverage(k, len(asked.catalogue)) for k in asked.at},
        unanswered=float(lists.unanswered().mean()),
    )


def _by_group(
    asked: Question, point: npt.NDArray[np.float64], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> dict[str, dict[str, Interval]]:
    names = [f"{metric}@{k}" for metric in METRICS for k in asked.at]
    triples = iter(zip(point.tolist(), low.tolist(), high.tolist(), strict=True))
    return {group: {name: next(triples) for name in names} for group in asked.rows}


def _legs(asked: Question, lists: RankedLists) -> dict[str, float]:
    """Leg → share of the found relevant items that it found."""
    if lists.found_by is None or not lists.legs:
        return {}
    ranks = asked.relevant.ranks(lists)
    rows = np.flatnonzero(ranks <= asked.width)
    found = lists.found_by[asked.relevant.case[rows], ranks[rows] - 1]
    counts = np.bincount(found, minlength=len(lists.legs))
    return {leg: float(count / max(1, len(rows))) for leg, count in zip(lists.legs, counts.tolist(), strict=True)}


def _flat(figures: Mapping[str, Mapping[str, Interval]], suffix: str) -> dict[str, float]:
    return dict(_entries(figures, suffix))


def _entries(figures: Mapping[str, Mapping[str, Interval]], suffix: str) -> Iterator[tuple[str, float]]:
    for group, values in figures.items():
        for name, (value, low, high) in values.items():
            full = f"{name}{suffix}" + ("" if group == ALL else f"/{group}")
            yield from ((full, value), (f"{full}:low", low), (f"{full}:high", high))
