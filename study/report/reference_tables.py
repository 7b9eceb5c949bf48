"""The references beside the models, what model, vectors and co-occurrence find together, and what several codebooks do: tables of
section 6.

What must hold: every row names its run; intervals are 95 %, and say how they came about where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean
from typing import Any

from study.data.datasets import DatasetName
from study.experiments.configuration import RunChoice
from study.experiments.plan import rows
from study.experiments.results import Results
from study.experiments.run import LEGS, OWN, TOGETHER
from study.measures.evaluation import CUTOFFS
from study.report.cells import (
    NOT_MEASURED,
    NOT_YET,
    absent,
    cells_of,
    is_item_level,
    key_of,
    levers,
    markdown,
    methods,
    recalls,
)


def references(results: Results, dataset: DatasetName, record: Mapping[str, Any] | None) -> str:
    """The references beside the models at item level, on the same cases, each model by the ranking that suits it best."""
    if record is None:
        return f"{NOT_YET}\n"
    by_recall = sorted(record["recalls"].items(), key=lambda pair: float(pair[1]["10"]))
    lines = [[name, *cells_of([recall], CUTOFFS), *_interval_cells([recall]), ""] for name, recall in by_recall]
    own = [(label, choices) for label, choices in methods(dataset)]
    own += [(f"lever: {label}", choices) for label, choices in levers(dataset)]
    for label, choices in own:
        ranking = _ranking_of(results, choices)
        if ranking is None:
            lines.append([f"**{label}**", *absent(len(CUTOFFS)), "–", "–", "–", key_of(choices[0])])
        else:
            found = recalls(results, choices, OWN, "all", ranking)
            name = f"**{label}**, {ranking.removeprefix('item, ')}"
            lines.append([name, *cells_of(found, CUTOFFS), *_interval_cells(found), key_of(choices[0])])
    return markdown(["", *(f"@{k}" for k in CUTOFFS), "95 % @10", "95 % @50", "cases", "run"], lines)


def references_on_every_case(record: Mapping[str, Any] | None) -> list[str]:
    """The references on all cases of the set with their intervals, what each adds, and the settings that were chosen."""
    if record is None:
        return []
    by_recall = sorted(record["every case"].items(), key=lambda pair: float(pair[1]["10"]))
    lines = [[name, *(_with_ends(recall, k) for k in CUTOFFS), f"{recall['cases']:,}"] for name, recall in by_recall]
    lines += [
        [f"*{name}*", *(_with_ends(recall, k, sign="+") for k in CUTOFFS), f"{recall['cases']:,}"]
        for name, recall in record["differences"].items()
    ]
    settings = [f"- **{name}**: {words}" for name, words in record["settings"].items() if words]
    return [
        "On every case of the set, with 95 % intervals (bootstrap over cases; differences paired):\n",
        markdown(["", *(f"@{k}" for k in CUTOFFS), "cases"], lines),
        "\n".join(settings) + "\n",
    ]


def _with_ends(recall: Mapping[str, float], k: int, *, sign: str = "") -> str:
    value, low, high = (f"{recall[key]:{sign}.4f}" for key in (str(k), f"low {k}", f"high {k}"))
    return f"{value} [{low}, {high}]"


def _interval_cells(found: Sequence[Mapping[str, float]]) -> list[str]:
    """Intervals @10 and @50, and the number of cases. What was stored without them gets that of a share of so many cases,
    which is at least as wide where a case has several relevant items.
    """
    if not found:
        return ["–", "–", "–"]
    cases = int(found[0]["cases"])
    cells = []
    for k in (10, 50):
        stored = [(recall.get(f"low {k}"), recall.get(f"high {k}")) for recall in found]
        low, high = stored[0] if len(stored) == 1 else (None, None)
        if low is None or high is None:
            low, high = share_interval(mean(recall[str(k)] for recall in found), cases)
        cells.append(f"{low:.3f}-{high:.3f}")
    return [*cells, f"{cases:,}"]


def share_interval(share: float, cases: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many cases (Wilson 1927).

    >>> [round(end, 3) for end in share_interval(0.1, 100)]
    [0.055, 0.174]
    """
    z = 1.959964
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    return max(0.0, middle - half), min(1.0, middle + half)


def _ranking_of(results: Results, choices: Sequence[RunChoice]) -> str | None:
    """The ranking with the best recall@10 of the first of these runs, None before it was measured."""
    result = results.run(choices[0])
    if result is None or OWN.name not in result.measured:
        return None
    levels: dict[str, dict[str, float]] = result.measured[OWN.name]["all"]
    return max(filter(is_item_level, levels), key=lambda level: levels[level]["10"])


def legs(results: Results, dataset: DatasetName) -> list[str]:
    """What model, vectors and co-occurrence find together, for the runs where that was measured."""
    parts = []
    for row in rows(dataset):
        if LEGS not in row.measurements:
            continue
        result = results.run(row.choice)
        if result is None or LEGS.name not in result.measured:
            parts.append(f"**Legs together** ({row.title}, {key_of(row.choice)}): {NOT_MEASURED}.\n")
            continue
        found = result.measured[LEGS.name]
        mixture = found["mixture"]
        lines = [[name, *(_with_ends(recall, k) for k in CUTOFFS)] for name, recall in found["recalls"].items()]
        lines += [
            [f"*{name}*", *(_with_ends(recall, k, sign="+") if k == 10 else "" for k in CUTOFFS)]
            for name, recall in found["differences"].items()
        ]
        parts += [
            f"**Legs together** ({row.title}, {key_of(row.choice)}): the product's mixture, its weights chosen on "
            f"{found['valid cases']:,} cases of the valid part (γ {mixture['together']:g}, α {mixture['share']:g}); "
            "then the candidates of all put in order by one linear combination of log P_model, the cosine and the log of "
            "co-occurrence's share, of greatest likelihood on those cases. The wanted item is among the candidates of all "
            f"three in {found['reached']:.1%} of the cases.\n",
            markdown(["legs", *(f"@{k}" for k in CUTOFFS)], lines),
        ]
    return parts


def codebooks(results: Results, dataset: DatasetName) -> list[str]:
    """Models that learnt with several codebooks, asked by each and by all."""
    parts = []
    for row in rows(dataset):
        if TOGETHER not in row.measurements:
            continue
        title = f"**Several codebooks** ({row.title}, {key_of(row.choice)}): "
        result = results.run(row.choice)
        if result is None or TOGETHER.name not in result.measured:
            parts.append(f"{title}{NOT_MEASURED}.\n")
            continue
        recalls = result.measured[TOGETHER.name]["recalls"]
        lines = [[name, *(_with_ends(recall, k) for k in CUTOFFS)] for name, recall in recalls.items()]
        parts += [
            f"{title}the model asked by one codebook or by all, an item having the mean of its probabilities.\n",
            markdown(["asked by", *(f"@{k}" for k in CUTOFFS)], lines),
        ]
    return parts
