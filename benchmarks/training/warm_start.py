"""Warm start: recall after a share of a cold training's steps, from nothing and from an older bundle's model.

    python -m benchmarks warm-start [--catalogue DIR] [--scratch DIR] [--cases N] [--only NAME …] [--learning-rate RATE]

The older bundle was fitted and trained on what was there first, with as many steps as the cold training. Then all is there:
with the old codebook, and with a new one that was fitted on all items from another seed, whose tokens begin at the old ones by
several mappings. Of a catalogue whose items say when they were released (chorus_icecat), the first four fifths of the items
come first; queries are made of their texts, four an item to train on, and ``--cases`` are asked that were made from another
seed. Of one with sequences (amazon_games), the first four fifths of each user's history come first; asked is what comes next.
recall@10 is of items, by their own probability, of all and of new ones; the validation loss (-log P a token) is of 2,000
further cases. Each run's learning rate is that of `sidstream train`, unless one is given. What was measured is kept in the
scratch directory and not measured again, so that runs may be divided among processes by their names (``--list``); use one a
catalogue and number of cases.
"""

# ruff: noqa: E402 (threads are set before the first import that reads them)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import gzip
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common.reporting import Result, benchmark_arguments, report
from models.bundles.building import FitSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.first_model import ModelSettings
from models.bundles.item_encoder import ItemEncoder
from models.bundles.model_of_bundle import load_language_model
from models.bundles.warm_start import Items, Origin, find_tokens
from models.catalogue import Catalogue, CatalogueItem
from models.codebooks.codebook import Codebook
from models.codebooks.correspondence import Correspondence, by_codewords
from models.examples.made_queries import examples_from_catalogue
from models.examples.records import TrainingData, TrainingExample, TrainingHistory
from models.language.prompts import PromptSettings
from models.training.settings import TrainingSettings
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.item_search import found_items

CATALOGUE: Final = Path(__file__).parents[3] / "shared" / "data" / "chorus_icecat"
OLD_SHARE: Final = 0.8
EPOCHS: Final = 4
BATCH: Final = 128
VALIDATION: Final = 2_000
COULD_NOT_RUN: Final = 2
QUERIES: Final = PromptSettings(max_history=0, max_text_tokens=16)
HISTORIES: Final = PromptSettings(max_history=20, max_text_tokens=0)
MAPPINGS: Final = ("mean", "codewords", "most", "items")


@dataclass(frozen=True)
class Run:
    """A training: of which codebook, from where, and for which share of the cold training's steps."""

    codebook: str
    start: str
    share: float

    @property
    def name(self) -> str:
        return f"{self.codebook} {self.start} {self.share:g}"


RUNS: Final = tuple(
    [Run("same", start, share) for share in (0.1, 0.25, 1.0) for start in ("cold", "warm")]
    + [Run("same", "warm", 0.33)]
    + [Run("new", start, share) for share in (0.1, 0.25) for start in ("cold", *MAPPINGS)]
    + [Run("new", start, 1.0) for start in ("cold", "items")]
)


@dataclass(frozen=True)
class Told:
    """What is learnt from, first ``older`` and then ``all``; ``asked``: cases to measure and validate on; ``prompt``."""

    older: TrainingData
    all: TrainingData
    asked: Sequence[TrainingExample]
    prompt: PromptSettings


def of_queries(catalogue: Path, items: Sequence[CatalogueItem]) -> Told:
    """Made queries; first those for the items that were released first."""
    with gzip.open(catalogue / "items.jsonl.gz", "rt", encoding="utf-8") as lines:
        released = [json.loads(line)["released"] or "" for line in lines]
    first = np.argsort(np.array(released), kind="stable")[: round(OLD_SHARE * len(items))]
    old = {items[row].id for row in first.tolist()}
    made = examples_from_catalogue(items, per_item=4, seed=0)
    asked = examples_from_catalogue(items, per_item=1, seed=1)
    known = tuple(example for example in made if example.item in old)
    return Told(TrainingData(examples=known), TrainingData(examples=tuple(made)), asked, QUERIES)


def of_histories(sequences: Iterable[Sequence[str]], users: int) -> Told:
    """Histories of so many users; first four fifths of each, then all but the last two items, of which the first is asked for."""
    chosen = [tuple(items) for items in sequences if len(items) >= 4][:users]
    older = tuple(TrainingHistory(items[: max(2, round(OLD_SHARE * (len(items) - 2)))]) for items in chosen)
    every = tuple(TrainingHistory(items[:-2]) for items in chosen)
    asked = [TrainingExample(item=items[-2], history=items[:-2]) for items in chosen]
    return Told(TrainingData(histories=older), TrainingData(histories=every), asked, HISTORIES)


class Shop:
    """The catalogue, its bundles and what is asked of them, made once in ``scratch``."""

    def __init__(self, catalogue: Path, scratch: Path, users: int, cases: int) -> None:
        self.scratch = scratch
        self.items = Catalogue.read(catalogue)
        self.ids = [item.id for item in self.items.items]
        self.rows = {item: row for row, item in enumerate(self.ids)}
        sequences = self.items.sequences.values()
        self.told = of_histories(sequences, users) if sequences else of_queries(catalogue, self.items.items)
        known = {example.item for example in self.told.older.examples}
        known |= {item for history in self.told.older.histories for item in history.items}
        self.old = np.array([item in known for item in self.ids])
        order = np.random.default_rng(0).permutation(len(self.told.asked))
        cases = min(cases, len(order) // 3)
        self.cases = [self.told.asked[at] for at in order[:cases]]
        self.validation = TrainingData(examples=tuple(self.told.asked[at] for at in order[-VALIDATION:]))
        self.steps = round(EPOCHS * self.told.all.targets / BATCH)
        self.model = ModelSettings(hidden_size=64, model_layers=2, prompt=self.told.prompt)

    def fitted(self, codebook: str) -> Path:
        """A bundle without a model: the "same" codebook, of the old items, or the "new" one of all of them."""
        path = self.scratch / f"fitted-{codebook}"
        if not (path / "manifest.json").is_file():
            chosen = self.old if codebook == "same" else np.ones_like(self.old)
            fit_bundle(self.items.embeddings[chosen], path, FitSettings(seed=int(codebook == "new")))
        return path

    def trained(
        self, name: str, codebook: str, data: TrainingData, model: ModelSettings, steps: int, rate: float | None
    ) -> Bundle:
        """A bundle with a model of ``steps`` steps."""
        path = self.scratch / name.replace(" ", "-")
        if path.exists() and Bundle.open(path).manifest.language_model is not None:
            return Bundle.open(path)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.fitted(codebook), path)
        settings = TrainingSettings(
            max_steps=steps, batch_size=BATCH, learning_rate=rate or model.learning_rate, patience=10_000
        )
        bundle = Bundle.open(path)
        codes = self.codes(bundle)
        return train_bundle(bundle, data, self.ids, codes, model, settings, validation=self.validation)[0]

    def codes(self, bundle: Bundle) -> npt.NDArray[np.uint16]:
        return ItemEncoder.of(bundle).encode(self.items.embeddings, [item.encode() for item in self.ids])

    @cached_property
    def older(self) -> Bundle:
        """The bundle whose model knows the old items."""
        return self.trained("older", "same", self.told.older, self.model, self.steps, None)

    def tokens(self, new: Bundle, mapping: str) -> Correspondence | None:
        """What the new codebook's tokens begin at."""
        found = find_tokens(self.older, new, Items(self.ids, self.items.embeddings), self.codes(new))
        if found is None or mapping == "items":
            return found
        match mapping:
            case "codewords":
                return by_codewords(Codebook.load(new.codebook_path), Codebook.load(self.older.codebook_path))
            case "most":  # items of it: one old token
                last = np.lexsort((found.share, found.new))
                last = last[np.append(found.new[last][1:] != found.new[last][:-1], True)]
                return Correspondence(
                    found.new[last], found.old[last], np.ones(len(last), np.float32), found.layers, found.size
                )
        nothing = np.empty(0, np.int64)
        return Correspondence(nothing, nothing, np.empty(0, np.float32), found.layers, found.size)

    def measure(self, run: Run, rate: float | None) -> dict[str, Any]:
        """The figures of a run, read if they are there."""
        name = run.name if rate is None else f"{run.name} rate {rate:g}"
        kept = self.scratch / f"{name.replace(' ', '-')}.json"
        if kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_text())
            return found
        model = self.model
        if run.start != "cold":
            tokens = self.tokens(Bundle.open(self.fitted(run.codebook)), run.start)
            model = ModelSettings(origin=Origin(self.older, "older", tokens))
        steps = max(1, round(run.share * self.steps))
        bundle = self.trained(name, run.codebook, self.told.all, model, steps, rate)
        figures = self.recall(bundle)
        record = bundle.manifest.language_model
        assert record is not None
        figures |= {
            "loss": record.training["validation"]["loss"],
            "steps": steps,
            "seconds": record.training["seconds"],
        }
        kept.write_text(json.dumps(figures))
        return figures

    def recall(self, bundle: Bundle) -> dict[str, Any]:
        """recall@10 on the cases, of all items and of the new ones."""
        model, prompts = load_language_model(bundle)
        codes = self.codes(bundle)
        trie = CatalogueTrie(codes, bundle.layout)
        before = [[self.rows[item] for item in case.history] for case in self.cases]
        sids = [bundle.layout.sid_tokens(codes[rows]) if rows else () for rows in before]
        built = [prompts.build(case.query, history) for case, history in zip(self.cases, sids, strict=True)]
        answers = found_items(model, prompts.vocabulary, built, trie, np.ones(len(self.ids), np.int64))
        hits = []
        for (rows, scores), case, history in zip(answers, self.cases, before, strict=True):
            best = rows[np.argsort(-scores, kind="stable")]
            hits.append(self.rows[case.item] in best[~np.isin(best, history)][:10])
        new = ~self.old[[self.rows[case.item] for case in self.cases]]
        return {
            "recall": float(np.mean(hits)),
            "recall of new": float(np.array(hits)[new].sum() / max(1, new.sum())),
            "hits": hits,
        }


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--scratch", type=Path, default=Path(".sidstream/warm-start"), help="where runs are kept")
    parser.add_argument(
        "--catalogue", type=Path, default=CATALOGUE, help="of items with a time of release, or with sequences"
    )
    parser.add_argument(
        "--users", type=int, default=12_500, help="whose histories are learnt, of a catalogue with sequences"
    )
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="these runs alone")
    parser.add_argument("--cases", type=int, default=1_000, help="to measure on (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=None, help="of the runs, instead of the command's own")
    parser.add_argument("--list", action="store_true", help="print the names of the runs")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(run.name for run in RUNS), sep="\n")
        return 0
    if not arguments.catalogue.is_dir():
        print(f"no catalogue {arguments.catalogue}: name one with --catalogue")
        return COULD_NOT_RUN
    torch.set_num_threads(1)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    shop = Shop(arguments.catalogue, arguments.scratch, arguments.users, arguments.cases)
    results = []
    for run in RUNS:
        if arguments.only is not None and run.name not in arguments.only:
            continue
        found = shop.measure(run, arguments.learning_rate)
        cold = None
        if run.start != "cold" and arguments.only is None:
            cold = shop.measure(Run(run.codebook, "cold", run.share), arguments.learning_rate)
        for what, unit in (
            ("recall", "recall@10"),
            ("recall of new", "recall@10 of new items"),
            ("loss", "validation loss"),
        ):
            beside = (None, None) if cold is None else ("cold", cold[what])
            results.append(Result(run.name, found[what], unit, *beside))
    return report("Warm start", results, arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
