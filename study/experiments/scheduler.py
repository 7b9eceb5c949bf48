"""Runs the study's models side by side, one process and one core each.

What must hold: a run that fails or is stopped loses no other; Ctrl-C stops all, and what was finished stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from multiprocessing.managers import DictProxy
from pathlib import Path
from typing import Final

from rich.console import Console

from models.progress import WorkProgress, WorkTask
from models.terminal import shown
from study.experiments.plan import Row
from study.experiments.results import Results
from study.experiments.run import Measurement, run

_REFRESH_SECONDS: Final = 1.0
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def run_all(rows: Sequence[Row], results: Results, jobs: int, console: Console) -> list[str]:
    """Runs what is missing of ``rows``, ``jobs`` at a time; returns what failed, as "label: why"."""
    wanted: dict[str, tuple[Row, dict[Measurement, None]]] = {}
    for row in rows:
        wanted.setdefault(row.choice.key, (row, {}))[1].update(dict.fromkeys(row.measurements))
    missing = {key: pair for key, pair in wanted.items() if not _is_done(*pair, results)}
    console.print(f"{len(wanted)} models, {len(wanted) - len(missing):,} of them done, {jobs:d} at a time")
    if not missing:
        return []
    failed: list[str] = []
    # One thread a model: on small models two models side by side beat two threads.
    os.environ |= dict.fromkeys(_THREADS, "1")
    context = get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        WorkProgress(console) as work,
    ):
        states: DictProxy[str, tuple[str, float]] = manager.dict()
        running: dict[Future[None], str] = {
            pool.submit(_one, row, list(measurements), results.directory, results.scratch, states): key
            for key, (row, measurements) in missing.items()
        }
        tasks: dict[str, WorkTask] = {}
        while running:
            done, _ = wait(running, timeout=_REFRESH_SECONDS, return_when=FIRST_COMPLETED)
            for key, (what, share) in dict(states).items():
                if key not in tasks:
                    tasks[key] = work.task(_name(missing[key][0]), total=1.0)
                if key in running.values():
                    tasks[key].update(share, note=what)
            for future in done:
                key = running.pop(future)
                row = missing[key][0]
                if key in tasks:
                    tasks[key].end()
                if (error := future.exception()) is not None:
                    failed.append(f"{_name(row)}: {error!r}")
                    console.print(f"[red]failed[/] {shown(failed[-1])}", soft_wrap=True)
                else:
                    console.print(_finished(row, results))
    return failed


def _is_done(row: Row, measurements: Mapping[Measurement, None], results: Results) -> bool:
    result = results.run(row.choice)
    return result is not None and all(measurement.name in result.measured for measurement in measurements)


def _name(row: Row) -> str:
    return f"{row.choice.codebook.dataset} · {row.title}"


def _finished(row: Row, results: Results) -> str:
    result = results.run(row.choice)
    assert result is not None
    own = result.measured.get("own", {}).get("all", {})
    recalls = ", ".join(f"{level} {recall.get('10', 0):.3f}" for level, recall in own.items())
    return f"{_name(row)} [dim]{row.choice.key}[/]: loss {result.loss:.3f}, {result.seconds / 60:.0f} min; recall@10 {recalls}"


def _one(
    row: Row,
    measurements: Sequence[Measurement],
    directory: Path,
    scratch: Path,
    states: DictProxy[str, tuple[str, float]],
) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from streamer.process.logs import configure_logging
    from streamer.settings.process import LoggingSettings

    configure_logging(LoggingSettings(level="warning"), process="study")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    latest = 0.0

    def report(what: str, share: float) -> None:
        nonlocal latest
        if (parent := parent_process()) is not None and not parent.is_alive():
            os._exit(1)  # nobody waits for the result any more; the last checkpoint stays
        if time.monotonic() - latest > _REFRESH_SECONDS or what != "training":
            latest = time.monotonic()
            states[row.choice.key] = (what, share)

    run(row.choice, measurements, Results(directory, scratch), report)
