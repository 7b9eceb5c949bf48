"""What of the study is still to be computed, and the computing: hourglass records, references, runs.

What must hold: what is there is not computed again; a set whose files are absent is left out and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console

from models.errors import SidstreamError
from models.progress import WorkProgress
from models.terminal import shown
from study.data.choices import CodebookChoice
from study.data.codebooks import fitted, of_length_1
from study.data.datasets import PLANTED, DatasetName, is_present, load
from study.data.own_towers import in_their_space
from study.experiments.costs import costs
from study.experiments.plan import Row, rows, scale
from study.experiments.results import Results
from study.experiments.scheduler import run_all
from study.experiments.setting import some_cases
from study.measures.references import Embedded, reference_record
from study.measures.shape import measure_shape

DATASETS: Final[tuple[DatasetName, ...]] = ("amazon_games", "chorus_icecat", "planted")
# Which part of the study each figure of the paper is drawn from.
FIGURES: Final = {
    "figure 1": "hourglass", "figure 2": "hourglass", "figure 3": "hourglass", "figure 4": "hourglass",
    "figure 5": "table 2", "figure 6": "hourglass",
}  # fmt: skip
_LAYERS: Final = (3, 4)
_SIZES: Final = (64, 256, 1024)


def hourglass_choices(dataset: DatasetName) -> Iterator[CodebookChoice]:
    """The codebooks whose shape figures 1 to 4 and 6 show; one whose layers start apart; the planted one. Of a real set one that
    is as fine as the paper's, of the planted one the even and the uneven embeddings of § 3.2.
    """
    for method in ("k-means", "rq-vae"):
        for layers in _LAYERS:
            for size in _SIZES:
                yield CodebookChoice(dataset=dataset, method=method, layers=layers, size=size)
    yield CodebookChoice(dataset=dataset, start="independent")
    if dataset in PLANTED:
        yield scale(dataset).base.codebook
    else:
        yield CodebookChoice(dataset=dataset, size=4096)
    if dataset == "planted":
        spreads: tuple[Literal["uniform", "skewed"], ...] = ("uniform", "skewed")
        for embeddings in spreads:
            yield CodebookChoice(dataset=dataset, embeddings=embeddings)
            yield CodebookChoice(dataset=dataset, embeddings=embeddings, method="rq-vae")


def hourglass_label(choice: CodebookChoice) -> str:
    """Its name on the command line and in the report."""
    start = f", {choice.start} start" if choice.start != "shared" else ""
    embeddings = f", {choice.embeddings} embeddings" if choice.embeddings != "own" else ""
    return f"hourglass {choice.dataset} {choice.method}, L = {choice.layers}, M = {choice.size}{start}{embeddings}"


def row_label(row: Row) -> str:
    """Its name on the command line."""
    arrivals = ", arrivals" if row.choice.arrivals else ""
    return f"{row.choice.codebook.dataset} {row.section} {row.label}, seed {row.choice.seed}{arrivals}"


def names(text: str, label: str, key: str) -> bool:
    """Whether a text of ``--only`` names what has this label or key. A figure is named by what it is drawn from."""
    part = FIGURES.get(text.strip().lower())
    return text == key or (label.startswith(part) or f" {part} " in label if part is not None else text in label)


def require_named(only: Sequence[str], labels: Sequence[str], keys: Set[str]) -> None:
    """Raises ``SidstreamError`` for the first text that names nothing, saying what there is."""
    for text in only:
        if text.strip() and (text in keys or any(names(text, label, "") for label in labels)):
            continue
        similar = get_close_matches(text, labels, n=3, cutoff=0.4)
        raise SidstreamError(
            f"nothing of the study is called {text!r}: name a set ({', '.join(DATASETS)}), a part (hourglass, references, costs, "
            f"{', '.join(sorted({row.section for name in DATASETS for row in rows(name)}))}), a figure ({', '.join(FIGURES)}), "
            "a run's key"
            + (
                f", or what its label holds, such as {' or '.join(map(repr, similar))}"
                if similar
                else " or part of its label"
            )
        )


def do_work(results: Results, only: Sequence[str], jobs: int, console: Console, *, again: bool = False) -> list[str]:
    """Computes what is missing and named by ``only`` (nothing named: everything); returns what failed.

    Raises ``SidstreamError`` for a text of ``only`` that names nothing, before anything is computed or forgotten.
    """
    present = [name for name in DATASETS if is_present(name)]
    for name in DATASETS:
        if name not in present:
            console.print(f"[yellow]{shown(name)} is left out:[/] its files are not beside the project (README)")
    shapes = {choice: hourglass_label(choice) for name in present for choice in hourglass_choices(name)}
    compared = {name: f"references {name}" for name in present}
    timed = {name: f"costs {name}" for name in present if name not in PLANTED}
    runs = {row: row_label(row) for name in present for row in rows(name)}
    keys = {choice.key for choice in shapes} | {row.choice.key for row in runs} | set(present)
    require_named(only, [*shapes.values(), *compared.values(), *timed.values(), *runs.values()], keys)

    def wanted(label: str, key: str) -> bool:
        return not only or any(names(text, label, key) for text in only)

    chosen_shapes = [choice for choice, label in shapes.items() if wanted(label, choice.key)]
    chosen_sets = [name for name, label in compared.items() if wanted(label, name)]
    chosen_costs = [name for name, label in timed.items() if wanted(label, name)]
    chosen_rows = [row for row, label in runs.items() if wanted(label, row.choice.key)]
    if again:
        kinds = [("hourglass", choice.key) for choice in chosen_shapes] + [("references", name) for name in chosen_sets]
        kinds += [("costs", name) for name in chosen_costs]
        for kind, key in kinds:
            results.forget(kind, key)
        for row in chosen_rows:
            results.forget_run(row.choice)
    missing = [choice for choice in chosen_shapes if results.record("hourglass", choice.key) is None]
    with WorkProgress(console) as work:
        task = work.task("hourglass records", unit="records", total=len(missing)) if missing else None
        for number, choice in enumerate(missing, start=1):
            results.write_record("hourglass", choice.key, shape_record(choice, results.scratch))
            if task is not None:
                task.update(number)
    for name in chosen_sets:
        if results.record("references", name) is None:
            results.write_record("references", name, references(name, results.scratch))
    failed = run_all(chosen_rows, results, jobs, console)
    for name in chosen_costs if not failed else ():
        if results.record("costs", name) is None:
            results.write_record("costs", name, costs(name, results))
    return failed


def shape_record(choice: CodebookChoice, scratch: Path) -> dict[str, Any]:
    """The shape of one codebook's codes, with the choice that it came from."""
    found = fitted(choice, load(choice.dataset), scratch)
    return {"choice": choice.said(), "shape": measure_shape(found.codebook, found.vectors)}


def references(dataset: DatasetName, scratch: Path) -> dict[str, Any]:
    """Recall of the references, with intervals: on the cases that the runs are measured on, and on every case of the set."""
    base, data = scale(dataset).base, load(dataset)
    valid = load(dataset, "valid") if data.histories else None
    record = reference_record(data, valid, some_cases(data, base.cases), _other_embeddings(dataset, scratch))
    return {"choice": base.said(), **record}


def _other_embeddings(dataset: DatasetName, scratch: Path) -> dict[str, Embedded]:
    """What our own towers make of the items, and what the codebooks of the runs and the finest one keep of them, by name; of
    sets whose queries have embeddings.
    """
    given = load(dataset)
    if given.query_embeddings is None:
        return {}
    ours = in_their_space(given, "towers", 0, scratch)
    found = {"our own towers embed them": Embedded(ours.embeddings, ours.query_embeddings)}
    choices = {row.choice.codebook for row in rows(dataset)} | {CodebookChoice(dataset=dataset, layers=4, size=1024)}
    for choice in sorted(choices, key=lambda choice: (choice.layers, choice.size, choice.embeddings)):
        data, whose = (ours, ", of our own towers") if choice.embeddings == "towers" else (given, "")
        fit = fitted(choice, data, scratch)
        vectors = fit.codebook.reconstruct(fit.codes)
        found[f"their codes, {choice.layers} × {choice.size:,}{whose}"] = Embedded(
            of_length_1(vectors), data.query_embeddings
        )
    return found
