"""The study's report: ``docs/study/README.md`` and its figures, from the results alone.

What must hold: the same results give the same report; what has not been computed says so; every number stands beside
the run, the seed or the record that it came from, and the command that computes it again is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from study.data.datasets import DatasetName
from study.experiments.results import Results
from study.experiments.work import DATASETS
from study.report import reference_tables, tables
from study.report.figures import shape_figures, training_figures
from study.report.new_items import write_new_items

_FINDINGS: Final = Path(__file__).with_name("findings.md")
_TITLES: Final[dict[DatasetName, str]] = {
    "amazon_games": "amazon_games: the next item of a history",
    "chorus_icecat": "chorus_icecat: from a query to products",
    "planted": "A planted hourglass: next item, synthetic",
    "tiny": "A planted hourglass in small",
}

_METHOD: Final = """\
## How it was measured

- **Split.** amazon_games: each user's last item is the test, the last but one is for choosing settings, the rest trains
  (leave-one-out). chorus_icecat: the 113 judged queries with a product rated 2 or 3 are the test; training queries are
  made from titles, brands, types and descriptions alone. Planted: walks among nearest neighbours, split as amazon_games.
- **Recall@k** of a case is the share of its relevant items among the first k answers (one relevant item: the hit rate),
  as a mean over cases, with 50 beams under the constraint. *SID level*: the SID of the item is among the first k SIDs.
  *Item level*: the item itself is among the first k items; SIDs in the order of their scores, the items of a SID in the
  order of a ranking (**weight**: popularity in training; **left-out token**: the model's log P(c2 | c1); **history**:
  similarity of the embedding to the mean of the history's; **reconstructed**: the same from the codes alone), or all items
  in the order of their **own probability**: the SID's times the item's share of it, by weight (or by P(c2 | c1) of the
  left-out token, and by weight among equal codes), or in the order of the similarity of the **query**'s embedding to what the
  codes of the items found say of them. Items of the history are left out of item lists, of the references' too; SIDs
  that name nothing but items of the history are left out of SID lists. **Rows called "SID, history kept"** are of runs
  that were measured before that was so: their lists held the history's own SIDs, which cost them places, so that they must
  not be compared with the item level, nor with rows called "SID".
- **References** are the product's (`sidstream evaluate`). Their settings are chosen on the valid part, they are measured on every
  case of the set, and on the cases of the models beside these. **Intervals** are 95 %, bootstrap over cases. Runs that were
  stored before keep no ranks of single cases: theirs are those of a share of so many cases (Wilson), at the most, and a
  difference to a reference is not paired.
- **Head items** are those whose layer-2 token is among the 10 % most crowded ones; **tail** items are the others; **new**
  items are a tenth of the catalogue that arrived after training.
- **Models** are small (the tables say how small), from scratch, on two CPU cores: methods are compared with each other
  under equal means, not with the paper's 0.8 and 7 billion parameters.
- `±` is the standard deviation over seeds; a row without it is seed 0 alone. "Not measured": planned, and not run yet.
- *The best ranking* is the one with the highest recall@10 under top@10 %, on the same cases that the tables show.
- **Again:** every row ends with the key of its run. `sidstream study --only KEY --again` trains and measures that run
  anew, `sidstream study --only "table 2"` all of a kind, `sidstream study --report` rebuilds this page and its figures
  from `results/`, `sidstream study` computes what is missing.
"""


def write_report(results: Results, output: Path, datasets: Sequence[DatasetName] = DATASETS) -> Path:
    """Writes the page and its figures; returns the page's path."""
    output.mkdir(parents=True, exist_ok=True)
    parts = [
        "# The hourglass on public data\n",
        "Should you shorten Semantic IDs, how far, and what does it cost your items? Every method, table and figure of "
        "*Breaking the Hourglass Phenomenon of Residual Quantization* (Kuai et al. 2024), on data that anyone can get, "
        "and what the paper did not look at: a layout that changes under a frozen model.\n",
    ]
    if datasets == DATASETS and _FINDINGS.is_file():
        parts.append(_FINDINGS.read_text())
    parts.append(_METHOD)
    for dataset in datasets:
        parts.append(f"# {_TITLES[dataset]}\n")
        parts += _dataset(results, dataset, output)
    if datasets == DATASETS:
        write_new_items(results, output)
    page = output / "README.md"
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts))
    return page


def _dataset(results: Results, dataset: DatasetName, output: Path) -> list[str]:
    record = results.record("references", dataset)
    sections: list[tuple[str, str, Callable[[], list[str]]]] = [
        (
            "1. The shape of the codes (figures 1-4 and 6)",
            f'Again: `sidstream study --only "hourglass {dataset}" --again`.',
            lambda: shape_figures(results, dataset, output),
        ),
        (
            "2. Head and tail, layers exchanged, first token given (table 1)",
            "Recall of SIDs.",
            lambda: [tables.table_1(results, dataset)],
        ),
        (
            "3. Methods against the hourglass (table 2)",
            "SID level, and item level by the best ranking.",
            lambda: [
                tables.table_2(results, dataset),
                "How many items share a SID:\n",
                tables.buckets(results, dataset),
                "By the item: recall when a list of SIDs is cut after so many items, whichever they are; -log P(item), an item's "
                "probability being its SID's times its share of it; processor time of one thread (16 queries at a time, on a "
                "machine that does other things too: compare inside a set alone):\n",
                tables.per_item(results, dataset),
                "What a query costs by each method: models of one seed asked in turn, 320 cases in batches of sixteen, one "
                "thread, the median of seven rounds on a core that did nothing else (the column above is of whatever machine "
                "measured a row):\n",
                tables.cost(results, dataset),
                "Over other depths and sizes of the codebook (draft, § 5.5), one seed:\n",
                tables.parameters(results, dataset),
                "The order of the items inside a SID decides recall of items:\n",
                tables.rankings(results, dataset),
            ],
        ),
        (
            "4. Invalid SIDs without the constraint (figure 5), and loss curves",
            "Under the constraint the share is zero: the beam search walks the trie alone (`tests/retriever`).",
            lambda: training_figures(results, dataset, output),
        ),
        (
            "5. A layout change under a frozen model",
            "Recall@10; a tenth of the items arrived after training.",
            lambda: [tables.layout_change(results, dataset)],
        ),
        (
            "6. References on the same cases",
            f'Again: `sidstream study --only "references {dataset}" --again`.',
            lambda: [
                reference_tables.references(results, dataset, record),
                *reference_tables.references_on_every_case(record),
                *reference_tables.legs(results, dataset),
                *reference_tables.codebooks(results, dataset),
            ],
        ),
        ("Runs", "", lambda: [tables.runs(results, dataset)]),
    ]
    parts = []
    for title, note, content in sections:
        parts += [f"## {title}\n", *([note + "\n"] if note else []), *content()]
    return parts
