"""Deploying: what queries cost while the retriever loads another bundle beside the one that answers.

One thread asks one query after the other, as the retriever's loop does, with a pause between two; the record changes from one
bundle to its twin and back, and the retriever's own thread verifies, loads, warms up and exchanges them. What queries took that
ended within a load is held against those before. Both have the same model, made at random, and an index with vectors.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from models.bundles.building import FitSettings, ModelSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.dense_part import add_dense_part, dense_space_of, fit_dense_part
from models.bundles.manifest import write_manifest
from models.bundles.store import BundleStore
from models.codebooks.codebook import Codebook
from models.dense.mixture import MixtureWeights
from models.dense.vectors import quantise
from models.examples.records import TrainingExample
from models.training.settings import TrainingSettings
from retriever.answering.asked import Asked
from retriever.serving.bundles import BundlesOfRecord
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter
from streamer.deployments.follow import ServingFollower
from streamer.events.records import Query
from streamer.events.serving import Deployed, Pipeline, Serving
from streamer.process.health import Health
from streamer.settings import Settings

DIMENSION: Final = 64
FITTED: Final = 5_000
LAYERS, SIZE = 3, 256
WEIGHTS: Final = MixtureWeights(sharpness=12.0, share=0.5)
AT_ONCE: Final = 10_000
GOAL: Final = Target.ratio_at_most(2)


class FollowedByHand(ServingFollower):
    """Has the record that it is given, without a broker."""

    def __init__(self, current: Serving) -> None:
        self.current = current


def bundles(directory: Path, arguments: Any) -> list[Bundle]:
    """Two of one codebook, equal but for their ids, in a store."""
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(FITTED, DIMENSION)).astype(np.float32)
    root = directory / "bundle"
    fit_bundle(embeddings, root, FitSettings(size=SIZE, iterations=3))
    names = [f"item-{number}" for number in range(FITTED)]
    train_bundle(
        Bundle.open(root),
        [TrainingExample(query=f"thing number {number}", item=name) for number, name in enumerate(names[:500])],
        names,
        Codebook.load(Bundle.open(root).codebook_path).encode(embeddings),
        ModelSettings(hidden_size=arguments.hidden_size, model_layers=arguments.model_layers, tokenizer_size=3_000),
        TrainingSettings(max_steps=2, batch_size=8),
    )
    fitted = fit_dense_part(Bundle.open(root), embeddings, names)
    space = dense_space_of(fitted)
    assert space is not None
    add_dense_part(fitted, space, weights={"embedding": WEIGHTS, "history": WEIGHTS})
    store, found = BundleStore(directory / "store"), []
    for name in ("one", "other"):
        write_manifest(root, msgspec.structs.replace(Bundle.open(root).manifest, embedding=name))
        found.append(store.add(root))
    return found


def index(path: Path, bundle: Bundle, items: int) -> None:
    """``items`` random items with vectors."""
    random, layout = np.random.default_rng(1), bundle.layout
    with IndexWriter.open(path, codebook_id=layout.codebook_id, layers=layout.layers, size=layout.size) as writer:
        for start in range(0, items, AT_ONCE):
            count = min(AT_ONCE, items - start)
            writer.apply(
                CodesBatch(
                    [f"item-{start + number}".encode() for number in range(count)],
                    random.integers(SIZE, size=(count, LAYERS)).astype(np.uint16),
                    np.ones(count, np.float32),
                    [f"title of item {start + number}" for number in range(count)],
                    np.zeros(count, np.int64),
                    np.zeros(count, bool),
                    vectors=quantise(random.normal(size=(count, DIMENSION)).astype(np.float32)).encode(),
                ),
                {},
            )


class Asking:
    """Asks in a thread; ``took``: (end, seconds) of every query."""

    def __init__(self, served: BundlesOfRecord, pause_seconds: float) -> None:
        self.took: list[tuple[float, float]] = []
        self._served = served
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        number = 0
        while not self._stop.wait(self._pause_seconds):
            number += 1
            started = time.perf_counter()
            with self._served.current.held() as answering:
                query = Query(text=f"thing number {number % 97}", history=(f"item-{number % 1000}",))
                [answer] = answering.of(str(number)).answerer.answers([Asked(str(number), query)])
            if answer.error is not None:
                raise RuntimeError(f"a query failed ({answer.error}): the figures would mean nothing")
            ended = time.perf_counter()
            self.took.append((ended, ended - started))

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def within(self, spans: list[tuple[float, float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Milliseconds of the queries that ended in these spans."""
        return 1000 * np.array([took for end, took in self.took if any(a <= end - took / 2 <= b for a, b in spans)])


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--model-layers", type=int, default=4)
    parser.add_argument("--loads", type=int, default=10)
    parser.add_argument("--alone-seconds", type=float, default=8.0)
    parser.add_argument("--pause-ms", type=float, default=10.0, help="between two queries")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="sidstream-deploying-") as name:
        directory = Path(name)
        one, other = bundles(directory, arguments)
        index(directory / "index", one, arguments.items)
        settings = Settings(bundles=directory / "store", index=directory / "index", bundle=directory / "bundle")
        results = _measured(settings, one, other, arguments)
        size = BundleStore(directory / "store").size(one.id) / 1e6
    title = f"Deploying: {arguments.items:,} items, a bundle of {size:.0f} MB, {arguments.loads} loads"
    return report(title, results, arguments.json)


def _measured(settings: Settings, one: Bundle, other: Bundle, arguments: Any) -> list[Result]:
    codebook = one.manifest.codebook_id
    record = Serving(
        bundle=one.id,
        deployed=tuple(Deployed(bundle=each.id, codebook=codebook, since=1) for each in (one, other)),
        pipelines=(Pipeline(codebook=codebook, bundle=one.id, since=1),),
    )
    follower = FollowedByHand(record)
    served = BundlesOfRecord(settings, follower, Health())
    served.start(threading.Event())
    alone: list[tuple[float, float]] = []
    loading: list[tuple[float, float]] = []
    with served, Asking(served, arguments.pause_ms / 1000) as asking:
        time.sleep(2.0)
        for number in range(1, arguments.loads + 1):
            begin = time.perf_counter()
            time.sleep(arguments.alone_seconds / arguments.loads)
            change = time.perf_counter()
            alone.append((begin, change))
            wanted = other if number % 2 else one
            follower.current = msgspec.structs.replace(record, bundle=wanted.id, number=number)
            while served.current.now.main.id != wanted.id:
                time.sleep(0.005)
            loading.append((change, time.perf_counter()))
    before, during = asking.within(alone), asking.within(loading)
    seconds = float(np.median([end - begin for begin, end in loading]))

    def against(what: str, percent: float, target: Target | None = None) -> Result:
        own, base = np.percentile(during, percent), np.percentile(before, percent)
        return Result(f"a query while a bundle is loaded, {what}", float(own), "ms", "without", float(base), target)

    return [
        Result("a load, until the change", seconds, "s"),
        Result("queries within loads", len(during), "queries", "without", len(before)),
        against("median", 50),
        against("p99", 99, GOAL),
        against("the longest", 100),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
