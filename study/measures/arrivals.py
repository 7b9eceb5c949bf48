"""Are items found that came after training? The mixture of the model and the dense leg, beside either alone, all cases.

What must hold: everything that is measured is the product's own: the search, an item's log-probability, the kept vectors (a
byte a dimension), the dense space, the choice of λ, α and β on validation cases of known items, the mixture. Nothing is chosen on
a test case or on an item that arrives in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.choosing import CUTOFF, ValidationCase, choose_weights
from models.dense.fit_mixture import validation_case
from models.dense.mixture import MixtureWeights, gather, log_sum, mixed, rank_of
from models.dense.pairs import NOTHING, log_shares
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.dense.vectors import quantise
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary
from study.data.datasets import Dataset, TestCase, fresh_queries, load
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.item_search import Found, found_items

VALIDATION_CASES: Final = 2_000  # with an old target, and as many with a new one
SLICE: Final = 0.1  # of the known items, playing the arrivals where λ, α and β are chosen
RESAMPLED: Final = 1_000
_BLOCK: Final = 500  # of cases whose cosines are computed together

Progress = Callable[[str, float], None]


class Setting(Protocol):
    """What is looked at of ``study.experiments.run.Setting``."""

    @property
    def data(self) -> Dataset: ...

    @property
    def codes(self) -> npt.NDArray[np.uint16]: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def vocabulary(self) -> SidVocabulary: ...

    def prompt(self, case: TestCase, layout: Layout) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class _Catalogue:
    """What is there to be answered: ``rows`` of the set; and by place among them the kept vectors' embeddings (n, D) of length 1,
    id hashes (n,) and which of them training knew (n,).
    """

    rows: npt.NDArray[np.int64]
    embeddings: npt.NDArray[np.float32]
    hashes: npt.NDArray[np.uint64]
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, here: Setting, present: npt.NDArray[np.bool_]) -> _Catalogue:
        rows = np.flatnonzero(present)
        return cls(
            rows,
            quantise(here.data.embeddings[rows]).unit(),
            id_hashes(str(row).encode() for row in rows.tolist()),
            ~here.data.arrived[rows],
        )

    def places(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Places of those rows of the set that are there, in their order."""
        wanted = np.asarray(rows, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.rows, wanted), len(self.rows) - 1)
        found: npt.NDArray[np.int64] = at[self.rows[at] == wanted]
        return found


def choose_rule(here: Setting, model: Any, progress: Progress) -> dict[str, Any]:
    """Which rule is for new items, by a real slice of arrivals: of a model and a codebook that have never seen them, in a
    catalogue without the items that arrive in the test.
    """
    in_test = load(here.data.name, arrivals=True).arrived
    catalogue = _Catalogue.of(here, ~in_test)
    cases, share = validation_cases(here, ~in_test, here.data.arrived)
    space, _ = fit_space(
        catalogue.embeddings, catalogue.hashes, _histories(here, catalogue), known=catalogue.known, keep_pairs=True
    )
    asked = _asked(here, model, cases, catalogue, space, partial(progress, "search"))
    vectors = space.items(catalogue.embeddings, catalogue.hashes)
    choose = partial(choose_weights, asked, vectors, ~catalogue.known, share_of_new_targets=share)
    return {
        "new items by P_dense, lifted": msgspec.to_builtins(choose()),
        "new items by P_dense alone": msgspec.to_builtins(choose(boosts=(0.0,))),
        "new items as old ones": msgspec.to_builtins(choose(boosts=None)),
    }


def measure_arrivals(here: Setting, model: Any, cache: Path, progress: Progress) -> dict[str, Any]:
    """Recall@10 of all, old and new items by rule, over all test cases, with 95 % intervals; and what was chosen how.

    ``cache``: where the search's answers are kept until all is measured, because 50,000 of them take half an hour.
    """
    data = here.data
    chosen = _chosen(here, model, partial(progress, "choosing"))
    catalogue = _Catalogue.of(here, np.ones(len(data.embeddings), dtype=bool))
    space, _ = fit_space(
        catalogue.embeddings, catalogue.hashes, _histories(here, catalogue), known=catalogue.known, keep_pairs=True
    )
    vectors = space.items(catalogue.embeddings, catalogue.hashes)
    cases = data.cases
    together = space.rows_together(catalogue.hashes)
    found = _kept(cache, cases, partial(_search, here, model, cases, catalogue, partial(progress, "search")))
    weights = msgspec.convert(chosen["weights"], MixtureWeights)
    rules = {
        "the model alone": MixtureWeights(sharpness=weights.sharpness, share=0.0, share_of_new=0.0),
        "the dense leg alone": weights.dense_alone(),
        "mixture": weights,
    }
    ranks: dict[str, list[int]] = {name: [] for name in rules}
    case_of: list[int] = []
    new: list[bool] = []
    for start in range(0, len(cases), _BLOCK):
        block = cases[start : start + _BLOCK]
        queries = np.stack([_query(here, case, catalogue, vectors, space) for case in block])
        for case, cosines, (rows, model_scores) in zip(
            block, queries @ vectors.T, found[start : start + _BLOCK], strict=True
        ):
            cosines[list(case.history)] = -np.inf
            beside = NOTHING
            if together is not None:
                taken, counts = together.neighbours(case.history)
                beside = log_shares(taken, counts, ~np.isin(taken, case.history))
            candidates = gather(rows, model_scores, cosines, ~catalogue.known, excluded=case.history, together=beside)
            normaliser = log_sum(cosines, weights.sharpness)
            for name, rule in rules.items():
                values = mixed(candidates, normaliser, rule)
                ranks[name] += [rank_of(item, candidates, values) for item in case.relevant]
            case_of += [case.case] * len(case.relevant)
            new += data.arrived[list(case.relevant)].tolist()
        progress("mixture", start / len(cases))
    is_new = np.array(new)
    groups = {"all": np.ones(len(is_new), dtype=bool), "old": ~is_new, "new": is_new}
    return {"chosen": chosen} | {
        name: {
            group: _interval(np.array(case_of)[rows], np.array(places)[rows] <= CUTOFF)
            for group, rows in groups.items()
        }
        for name, places in ranks.items()
    }


def _chosen(here: Setting, model: Any, progress: Callable[[float], None]) -> dict[str, Any]:
    """λ, α and β, as ``sidstream train`` chooses them: a slice of the known items plays the arrivals, in a space without them."""
    known = ~here.data.arrived
    catalogue = _Catalogue.of(here, known)
    held_back = np.random.default_rng(3).random(len(catalogue.rows)) < SLICE
    space, _ = fit_space(
        catalogue.embeddings, catalogue.hashes, _histories(here, catalogue), known=~held_back, keep_pairs=True
    )
    playing = np.zeros(len(known), dtype=bool)
    playing[catalogue.rows[held_back]] = True
    cases, share = validation_cases(here, known, playing)
    asked = _asked(here, model, cases, catalogue, space, progress)
    vectors = space.items(catalogue.embeddings, catalogue.hashes)
    chosen: dict[str, Any] = msgspec.to_builtins(choose_weights(asked, vectors, held_back, share_of_new_targets=share))
    return chosen


def validation_cases(
    here: Setting, present: npt.NDArray[np.bool_], playing: npt.NDArray[np.bool_]
) -> tuple[list[TestCase], float]:
    """Cases to choose by, whose targets are ``present``, ``case`` numbered from 0: each user's last item but one; for queries,
    ones that are made as those of training were, and are none of them. Of old targets and of those ``playing`` the arrivals at
    most ``VALIDATION_CASES`` each, and the share of the latter in all that there are.
    """
    data = here.data
    name = here.data.name
    if data.histories:
        cases = [
            TestCase(case.case, case.relevant, history=tuple(item for item in case.history if present[item]))
            for case in load(name, "valid", arrivals=True).cases
            if present[case.relevant[0]]
        ]
    else:
        known = set(data.queries)
        cases = [
            TestCase(number, (item,), query=query)
            for number, (query, item) in enumerate(fresh_queries(name))
            if present[item] and (query, item) not in known
        ]
    random = np.random.default_rng(0)
    is_new = playing[[case.relevant[0] for case in cases]]
    groups = [random.permutation(np.flatnonzero(group))[:VALIDATION_CASES] for group in (~is_new, is_new)]
    return [cases[number] for number in np.sort(np.concatenate(groups))], float(is_new.mean())


def _space(here: Setting, catalogue: _Catalogue, known: npt.NDArray[np.bool_]) -> DenseSpace:
    histories = _histories(here, catalogue)
    return fit_space(catalogue.embeddings, catalogue.hashes, histories, known=known, keep_pairs=True)[0]


def _histories(here: Setting, catalogue: _Catalogue) -> list[list[int]]:
    """The training histories as places of the catalogue."""
    return [catalogue.places(history).tolist() for history in here.data.histories]


def _asked(
    here: Setting,
    model: Any,
    cases: Sequence[TestCase],
    catalogue: _Catalogue,
    space: DenseSpace,
    progress: Callable[[float], None],
) -> list[ValidationCase]:
    vectors = space.items(catalogue.embeddings, catalogue.hashes)
    embedded: Mapping[int, npt.NDArray[np.float32]] = {}
    if not here.data.histories:
        from study.data.sentence_model import embed

        embedded = dict(zip([case.case for case in cases], embed([case.query for case in cases]), strict=True))
    found = _search(here, model, cases, catalogue, progress)
    together = space.rows_together(catalogue.hashes)
    asked = []
    for case, found_rows in zip(cases, found, strict=True):
        history = tuple(catalogue.places(case.history).tolist())
        asked.append(
            validation_case(
                space.query(embedded[case.case]) if embedded else _query(here, case, catalogue, vectors, space),
                int(catalogue.places(case.relevant)[0]),
                found_rows,
                history,
                excluded=history,
                together=together,
            )
        )
    return asked


def _query(
    here: Setting,
    case: TestCase,
    catalogue: _Catalogue,
    vectors: npt.NDArray[np.float32],
    space: DenseSpace,
) -> npt.NDArray[np.float32]:
    if here.data.query_embeddings is not None:
        return space.query(here.data.query_embeddings[case.case])
    return space.taste(vectors[catalogue.places(case.history)])


def _search(
    here: Setting,
    model: Any,
    cases: Sequence[TestCase],
    catalogue: _Catalogue,
    progress: Callable[[float], None],
) -> list[Found]:
    """What the product's search finds for each case: places in the catalogue and log-probabilities."""
    trie = CatalogueTrie(here.codes, here.layout, catalogue.rows)
    prompts = [here.prompt(case, here.layout) for case in cases]
    found = found_items(model, here.vocabulary, prompts, trie, here.data.popularity, progress=progress)
    return [(catalogue.places(rows), scores) for rows, scores in found]


def _kept(cache: Path, cases: Sequence[TestCase], search: Callable[[], list[Found]]) -> list[Found]:
    """The search's answers, read if they are kept already."""
    if not cache.is_file():
        found = search()
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial_file = cache.with_suffix(".partial.npz")
        np.savez(
            partial_file,
            bounds=np.cumsum([0, *(len(rows) for rows, _ in found)]),
            rows=np.concatenate([rows for rows, _ in found]).astype(np.int32),
            scores=np.concatenate([scores for _, scores in found]),
        )
        partial_file.replace(cache)
    with np.load(cache) as kept:
        bounds, rows, scores = kept["bounds"], kept["rows"].astype(np.int64), kept["scores"]
    assert len(bounds) == len(cases) + 1
    return [
        (rows[start:end], scores[start:end])
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def _interval(case: npt.NDArray[np.int64], found: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Mean over cases of the share of a case's rows that were found, and the middle 95 % of bootstrap means over cases."""
    _, place, rows = np.unique(case, return_inverse=True, return_counts=True)
    shares = np.bincount(place, weights=found) / rows
    random = np.random.default_rng(0)
    means = [float(shares[random.integers(len(shares), size=len(shares))].mean()) for _ in range(RESAMPLED)]
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return {
        "cases": len(shares), "recall@10": round(float(shares.mean()), 4), "low": round(low, 4), "high": round(high, 4)
    }  # fmt: skip
