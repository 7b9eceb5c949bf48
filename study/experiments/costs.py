"""What a query costs by each method of table 2: trained models asked in turn, so that a busy moment meets all of them.

What must hold: one thread; the same cases for each; models are those of one seed, as they were trained.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from models.errors import SidstreamError
from study.data.datasets import DatasetName
from study.experiments.configuration import RunChoice
from study.experiments.plan import rows
from study.experiments.results import Results
from study.experiments.run import load_model
from study.experiments.setting import setting
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import BEAMS

_CASES: Final = 320
_AT_ONCE: Final = 16
_ROUNDS: Final = 7


def asked_of(dataset: DatasetName, results: Results) -> dict[str, RunChoice]:
    """The methods of table 2 by label, of the one seed of which all models are on this machine. Raises ``SidstreamError`` if
    there is none.
    """
    planned = [row for row in rows(dataset) if row.section == "table 2"]
    labels = list(dict.fromkeys(row.label for row in planned))
    for seed in sorted({row.choice.seed for row in planned}):
        of_seed = {row.label: row.choice for row in planned if row.choice.seed == seed}
        if len(of_seed) == len(labels) and all(results.model_directory(choice).is_dir() for choice in of_seed.values()):
            return {label: of_seed[label] for label in labels}
    raise SidstreamError(
        f"costs of {dataset} are of trained models, and no seed has all of table 2's on this machine: run "
        f'`sidstream study --again --only "{dataset} table 2"` first'
    )


def costs(dataset: DatasetName, results: Results) -> dict[str, Any]:
    """By label: milliseconds a query of processor time and of the clock (medians of rounds), 16 at a time by one thread."""
    asked = asked_of(dataset, results)
    decoders = {label: _decoder(choice, results) for label, choice in asked.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: dict[str, list[tuple[float, float]]] = {label: [] for label in decoders}
        for round_number in range(_ROUNDS + 1):
            for label, decode in decoders.items():
                processor, clock = time.process_time(), time.perf_counter()
                decode()
                if round_number:  # the first one warms up
                    times[label].append((time.process_time() - processor, time.perf_counter() - clock))
    finally:
        torch.set_num_threads(threads)
    return {
        "seed": next(iter(asked.values())).seed,
        "cases": _CASES,
        "rounds": _ROUNDS,
        "methods": {
            label: {name: _middle([one[at] for one in found]) for at, name in enumerate(("processor", "clock"))}
            for label, found in times.items()
        },
    }


def _middle(seconds: Sequence[float]) -> float:
    return round(1_000 * statistics.median(seconds) / _CASES, 4)


def _decoder(choice: RunChoice, results: Results) -> Callable[[], None]:
    from retriever.search.beam_search import beam_search

    here = setting(choice, results.scratch)
    trie = CatalogueTrie(here.codes, here.layout)
    cases = here.cases(choice.cases)
    prompts = sorted((here.prompt(cases[number % len(cases)], here.layout) for number in range(_CASES)), key=len)
    search = partial(beam_search, load_model(results.model_directory(choice)), here.vocabulary, trie=trie, beams=BEAMS)

    def decode() -> None:
        for start in range(0, len(prompts), _AT_ONCE):
            search(prompts[start : start + _AT_ONCE])

    return decode
