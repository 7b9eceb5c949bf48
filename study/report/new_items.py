"""``docs/study/new-items.md``: are items found that came after training, by rule, over all cases, with intervals.

What must hold: the figures are those of the results; what was chosen, and on what, stands beside what came out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from study.data.datasets import DatasetName
from study.experiments.plan import ARRIVING, Row, rows
from study.experiments.results import Results
from study.experiments.run import ARRIVALS, ARRIVALS_RULE
from study.report.cells import NOT_MEASURED, key_of

RULES: Final = ("the model alone", "the dense leg alone", "mixture")
_GROUPS: Final = ("all", "old", "new")
_SETS: Final[tuple[DatasetName, ...]] = ("chorus_icecat", "amazon_games")
_INTRODUCTION: Final = """\
# Items that came after training

A tenth of the items is held back from the codebook and from training, and is in the index when the test cases are asked: *new*
items. The model has never seen them, and gives little to their SIDs. The *dense leg* compares a query with the items' vectors,
and the *mixture* gives an old item (1 - α) P_model + α ((1 - γ) P_near + γ P_together) and a new one e^β P_near, with
P_near(i | q) = exp(λ cos(q, i)) / Σ over the catalogue; P_together is of what was taken together with the history. Runs whose
weights show no γ were measured before that was known (γ 0). A query's vector is its embedding (chorus_icecat), or the mean of its
history's vectors by recency (amazon_games: text beside co-occurrence vectors, those of new items by kernel regression from the
text).

What is measured is the product's: the search with 50 beams, `item_log_probabilities`, vectors of a byte a dimension,
`models/dense/`. λ, where histories have anything taken together with them γ and α (greatest likelihood), and β, elsewhere with α
(greatest recall@10 of the group, old or new, that is found less, where the recall of all is not more than 5 % below its best)
are chosen on validation cases of known items, a tenth of which play the arrivals, as `sidstream train` does it
(docs/evaluation.md); no test case and no item that arrives in the test has a part in it.
Recall@10 of items, over **all** test cases; in brackets the middle 95 % of 1,000 bootstrap means over cases. "All" counts every
case, "old" and "new" those with an old or a new item to be found, and of these items alone.

Again: `sidstream study --only "new items"`.
"""


def write_new_items(results: Results, output: Path) -> Path:
    """Writes the page; returns its path."""
    parts = [_INTRODUCTION]
    for dataset in _SETS:
        parts.append(f"## {dataset}\n")
        parts += list(_dataset(results, dataset))
    page = output / "new-items.md"
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts))
    return page


def _dataset(results: Results, dataset: DatasetName) -> Iterator[str]:
    ours = [row for row in rows(dataset) if row.section == "new items"]
    every = [(row, found) for row in ours if (found := _measured(results, row, ARRIVALS.name)) is not None]
    measured = [(row, found) for row, found in every if row.label == ARRIVING]
    if not measured:
        yield "not run yet\n"
        return
    lines = []
    for row, found in every:
        if row.label != ARRIVING:
            lines += [_line(f"{rule}, {row.label}", row, found[rule], found["chosen"]) for rule in RULES]
    for rule in RULES:
        lines += [_line(rule, row, found[rule], found["chosen"]) for row, found in measured]
        if len(measured) > 1:
            means = [f"**{mean(found[rule][group]['recall@10'] for _, found in measured):.3f}**" for group in _GROUPS]
            lines.append([f"**{rule}**", "mean", *means, "", ""])
    done = {row.choice.key for row, _ in every}
    lines += [
        [row.label, str(row.choice.seed), NOT_MEASURED, "–", "–", "", key_of(row.choice)]
        for row in ours
        if ARRIVALS in row.measurements and row.choice.key not in done
    ]
    yield _table(["rule", "seed", *_GROUPS, "chosen", "run"], lines)
    groups = measured[0][1][RULES[0]]
    counts = ", ".join(f"{group} {groups[group]['cases']:,}" for group in _GROUPS)
    yield f"Cases: {counts}.\n"
    for row in ours:
        if ARRIVALS_RULE in row.measurements and _measured(results, row, ARRIVALS_RULE.name) is None:
            yield f"Which rule is for new items ({key_of(row.choice)}): {NOT_MEASURED}.\n"
        if (found := _measured(results, row, ARRIVALS_RULE.name)) is not None:
            yield (
                "Which rule is for new items, on validation cases alone: a further tenth of the items is held back from the "
                f"codebook and the training of a model of its own (run `{row.choice.key}`), and the items that arrive in the "
                "test are not there.\n"
            )
            yield _table(
                ["rule for new items", *_GROUPS, "chosen", "cases"],
                [
                    [
                        name,
                        *(_number(chosen["mixture"][group]) for group in _GROUPS),
                        _weights(chosen["weights"]),
                        f"{chosen['cases']:,}, {chosen['new_cases']:,} new",
                    ]
                    for name, chosen in found.items()
                ],
            )


def _measured(results: Results, row: Row, name: str) -> dict[str, Any] | None:
    result = results.run(row.choice)
    return None if result is None else result.measured.get(name)


def _line(rule: str, row: Row, figures: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    cells = [_cell(figures[group]) for group in _GROUPS]
    weights = _weights(chosen["weights"]) if rule.startswith("mixture") else ""
    return [rule, str(row.choice.seed), *cells, weights, f"`{row.choice.key}`"]


def _weights(chosen: dict[str, Any]) -> str:
    together = f"γ {chosen['together']:.1f}, " if chosen.get("together") else ""
    return f"λ {chosen['sharpness']:.1f}, {together}α {chosen['share']:.2f}, β {chosen['boost_of_new']:.1f}"


def _cell(figures: dict[str, Any]) -> str:
    return f"{figures['recall@10']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines)) + "\n"
