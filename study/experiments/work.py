"""What of the study is still to be computed, and the computing: hourglass records, references, runs.

What must hold: what is there is not computed again; a set whose files are absent is left out and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console

from models.errors import SidstreamError
from models.progress import WorkProgress
from models.terminal import shown
from study.data.choices import CodebookChoice
from study.data.codebooks import fitted
from study.data.datasets import DatasetName, is_present, load
from study.experiments.plan import Row, rows, scale
from study.experiments.results import Results
from study.experiments.run import setting
from study.experiments.scheduler import run_all
from study.measures.references import reference_recalls
from study.measures.shape import measure_shape

DATASETS: Final[tuple[DatasetName, ...]] = ("amazon_games", "chorus_icecat", "planted")
_LAYERS: Final = (3, 4)
_SIZES: Final = (64, 256, 1024)


def hourglass_choices(dataset: DatasetName) -> Iterator[CodebookChoice]:
    """The codebooks whose shape figures 1 to 4 and 6 show; one whose layers start apart; the planted one."""
    for method in ("k-means", "rq-vae"):
        for layers in _LAYERS:
            for size in _SIZES:
                yield CodebookChoice(dataset=dataset, method=method, layers=layers, size=size)
    yield CodebookChoice(dataset=dataset, start="independent")
    if dataset in ("planted", "tiny"):
        yield scale(dataset).base.codebook


def hourglass_label(choice: CodebookChoice) -> str:
    """Its name on the command line and in the report."""
    start = f", {choice.start} start" if choice.start != "shared" else ""
    return f"hourglass {choice.dataset} {choice.method}, L = {choice.layers}, M = {choice.size}{start}"


def row_label(row: Row) -> str:
    """Its name on the command line."""
    arrivals = ", arrivals" if row.choice.arrivals else ""
    return f"{row.choice.codebook.dataset} {row.section} {row.label}, seed {row.choice.seed}{arrivals}"


def do_work(results: Results, only: Sequence[str], jobs: int, console: Console, *, again: bool = False) -> list[str]:
    """Computes what is missing and named by ``only`` (nothing named: everything); returns what failed."""
    present = [name for name in DATASETS if is_present(name)]
    for name in DATASETS:
        if name not in present:
            console.print(f"[yellow]{shown(name)} is left out:[/] its files are not beside the project (README)")

    def wanted(label: str, key: str) -> bool:
        return not only or any(text in label or text == key for text in only)

    shapes = [
        choice for name in present for choice in hourglass_choices(name) if wanted(hourglass_label(choice), choice.key)
    ]
    compared = [name for name in present if wanted(f"references {name}", name)]
    runs = [row for name in present for row in rows(name) if wanted(row_label(row), row.choice.key)]
    if only and not (shapes or compared or runs):
        raise SidstreamError(f"nothing of the study is called {' or '.join(only)}: docs/study names its parts and runs")
    if again:
        for key, kind in [(choice.key, "hourglass") for choice in shapes] + [(name, "references") for name in compared]:
            results.forget(kind, key)
        for row in runs:
            results.forget_run(row.choice)
    missing = [choice for choice in shapes if results.record("hourglass", choice.key) is None]
    with WorkProgress(console) as work:
        task = work.task("hourglass records", unit="records", total=len(missing)) if missing else None
        for number, choice in enumerate(missing, start=1):
            results.write_record("hourglass", choice.key, shape_record(choice, results.scratch))
            if task is not None:
                task.update(number)
    for name in compared:
        if results.record("references", name) is None:
            results.write_record("references", name, references(name, results.scratch))
    return run_all(runs, results, jobs, console)


def shape_record(choice: CodebookChoice, scratch: Path) -> dict[str, Any]:
    """The shape of one codebook's codes, with the choice that it came from."""
    found = fitted(choice, load(choice.dataset), scratch)
    return {"choice": choice.said(), "shape": measure_shape(found.codebook, found.vectors)}


def references(dataset: DatasetName, scratch: Path) -> dict[str, Any]:
    """Recall of the references on the cases that the runs are measured on."""
    base = scale(dataset).base
    here = setting(base, scratch)
    recalls = reference_recalls(here.data, here.cases(base.cases), _read_as_codes(dataset, scratch))
    return {"choice": base.said(), "recalls": recalls}


def _read_as_codes(dataset: DatasetName, scratch: Path) -> dict[str, npt.NDArray[np.float32]]:
    """What the codebooks of the runs keep of the items, unit rows (N, D) by the shape of the codes."""
    data, found = load(dataset), {}
    if data.query_embeddings is None:
        return {}
    for choice in sorted(
        {row.choice.codebook for row in rows(dataset)}, key=lambda choice: (choice.layers, choice.size)
    ):
        fit = fitted(choice, data, scratch)
        vectors = fit.codebook.reconstruct(fit.codes)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        found[f"their codes, {choice.layers} × {choice.size:,}"] = vectors
    return found
