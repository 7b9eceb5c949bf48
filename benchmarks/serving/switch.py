"""Queries asked at a steady rate while what answers changes: a model swap, a canary, another codebook, a rollback.

Broker, assigners, indexers, monitor and retriever run as `sidstream up` runs them, each in a process of its own; the changes are
made by `sidstream deploy`, `promote` and `rollback`. A process of its own asks for users drawn anew and reads every answer;
a thread publishes item updates and knows how long each took to the index from which most users are answered. Phases follow one
another:

- *before*: nothing changes, which is the baseline of the same minute;
- *model swap*: a bundle with another model of the same codebook is deployed and promoted;
- *catching up*: a bundle with another codebook is deployed, and its pipeline reads the whole catalogue;
- *canary*: it answers a tenth of the users; *codebook switch*: it is promoted; *rollback*: the one before answers again.

What must hold in every phase: each query is answered once and none after its deadline; each answer names its bundle and the
codebook of that bundle; the p99 of queries during a change is at most twice that before; so is freshness while a candidate
catches up. With the small model of this benchmark a query takes a few milliseconds: the load is the rate, not the model.
What is asked for must leave the machine some room: beyond what a retriever can do, a queue grows whatever changes.

A shared machine stalls now and then, and one stall of a third of a second is the p99 of a phase: with ``--runs`` all of it is
done again and again, with a new broker each time; a row then has the median of the runs' p99 over the median of the p99 before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from models.bundles.building import FitSettings, fit_bundle, train_bundle
from models.bundles.bundle import Bundle
from models.bundles.dense_part import fit_dense_part
from models.catalogue import CatalogueItem
from models.examples.records import TrainingExample
from models.training.settings import TrainingSettings
from store.errors import IndexMissingError
from store.reading.reader import IndexReader
from streamer.client.freshness_probe import FreshnessProbe
from streamer.client.publisher import ItemPublisher, publish_items
from streamer.events.records import ANSWER, QUERY, Query
from streamer.kafka.clients import consumer_configuration, producer_configuration
from streamer.kafka.gather import drain
from streamer.local.priority import give_way
from streamer.local.up import Pipeline
from streamer.settings import Settings, load_settings

DIMENSION: Final = 32
DEADLINE_MS: Final = 2_000
PATIENCE_SECONDS: Final = 300.0
_LAST_ANSWERS_SECONDS: Final = 10.0
_WARM_UP_SECONDS: Final = 45.0  # until the broker's code is compiled
_PACE_SECONDS: Final = 0.002
TWICE: Final = Target.ratio_at_most(2.0)
NONE: Final = Target.value_at_most(0)


@dataclass
class Heard:
    """What the asking process saw: of each query when it was sent, in milliseconds since the epoch, and its answers as
    (milliseconds since it was sent, bundle, codebook, error).
    """

    sent: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[tuple[float, str, str, str]]] = field(default_factory=dict)

    def between(self, begin: float, end: float) -> list[str]:
        """Queries sent from ``begin`` to before ``end``."""
        return [query for query, at in self.sent.items() if begin <= at < end]


def _ask(settings: Settings, rate: int, pipe: Connection) -> None:
    """Asks until it is told to stop, and sends what it heard."""
    heard, random = Heard(), np.random.default_rng(5)
    consumer = Consumer(consumer_configuration(settings.kafka, group="switch", auto_offset_reset="latest"))
    consumer.subscribe([settings.topics.results])
    while not consumer.assignment():
        consumer.poll(0.1)
    producer = Producer(producer_configuration(settings.kafka, linger_ms=0))
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            for record in drain(consumer, 1_000, 0.05):
                now, key = time.time() * 1000, record.key().decode()
                answer = ANSWER.decode(record.value())
                fault = "" if answer.error is None else answer.error.kind
                own = (now - heard.sent.get(key, now), str(answer.bundle), answer.codebook, fault)
                heard.answers.setdefault(key, []).append(own)

    listener = threading.Thread(target=listen)
    listener.start()
    pipe.send("asking")
    number, started = 0, time.monotonic()
    while not pipe.poll():
        while number < (time.monotonic() - started) * rate:
            number += 1
            key, item = f"{number:08d}", int(random.integers(1_000))
            query = Query(
                text=f"thing number {item}", user=f"user-{random.integers(10_000)}", limit=10, timeout_ms=DEADLINE_MS
            )
            heard.sent[key] = time.time() * 1000
            producer.produce(settings.topics.queries, key=key, value=QUERY.encode(query))
        producer.poll(0)
        time.sleep(_PACE_SECONDS)
    producer.flush()
    deadline = time.monotonic() + _LAST_ANSWERS_SECONDS
    while len(heard.answers) < len(heard.sent) and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    listener.join()
    consumer.close()
    pipe.send(heard)


class Asking:
    """The process that asks; ``stop`` gives what it heard."""

    def __init__(self, settings: Settings, rate: int) -> None:
        context: Any = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_ask, args=(settings, rate, theirs), daemon=True)
        self._process.start()
        assert self._pipe.recv() == "asking"

    def stop(self) -> Heard:
        self._pipe.send("stop")
        heard: Heard = self._pipe.recv()
        self._process.join()
        return heard


class Freshening:
    """A thread that updates items at a steady rate and knows how long each took to be retrievable from what answers."""

    def __init__(self, settings: Settings, indexes: Sequence[Path], embeddings: Any, rate: int) -> None:
        """``indexes``: of the pipeline that answers, and of the one that does after ``changed``."""
        self._settings, self._indexes, self._embeddings, self._rate = settings, indexes, embeddings, rate
        self._stop, self.changed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()
        self.p99_ms = float("nan")
        self._thread.start()
        self._ready.wait(PATIENCE_SECONDS)  # the start of the probe belongs to no phase

    def _run(self) -> None:
        with ExitStack() as stack:
            probes = [stack.enter_context(FreshnessProbe(index)) for index in dict.fromkeys(self._indexes)]
            publisher = stack.enter_context(ItemPublisher(self._settings))
            self._ready.set()
            started, now, number = time.monotonic(), int(time.time() * 1000), 0
            while not self._stop.is_set():
                while number < (time.monotonic() - started) * self._rate:
                    number += 1
                    row = number % 1_000
                    probes[-1 if self.changed.is_set() else 0].sent(f"item-{row}", now + number)
                    publisher.update(
                        f"item-{row}", self._embeddings[row], title=f"thing number {row}", updated_at=now + number
                    )
                publisher.poll()
                time.sleep(_PACE_SECONDS)
            publisher.flush()
            for probe in probes:
                probe.wait(PATIENCE_SECONDS)
            self.p99_ms = float(np.percentile(np.concatenate([probe.seconds for probe in probes]), 99) * 1000)

    def stop(self) -> float:
        """p99 in milliseconds."""
        self._stop.set()
        self._thread.join()
        return self.p99_ms


@dataclass
class Phase:
    """``begin`` and ``end``: milliseconds since the epoch."""

    name: str
    begin: float
    end: float
    freshness_ms: float


class Switch:
    """The pipeline that runs, and the phases that it has gone through."""

    def __init__(self, settings: Settings, directory: Path, embeddings: Any, seconds: float, updates: int) -> None:
        self.settings, self.directory, self.embeddings = settings, directory, embeddings
        self.seconds, self.updates = seconds, updates
        self.index = settings.index  # of the pipeline that answers most users
        self.phases: list[Phase] = []

    def phase(self, name: str, *commands: Sequence[str], then: Path | None = None) -> None:
        """Runs the commands one after the other while items are updated, then waits until the phase is long enough. ``then``: the
        index from which most users are answered after them, if it is another one."""
        indexes = (self.index, then or self.index)
        freshening = Freshening(self.settings, indexes, self.embeddings, self.updates)
        begin = time.time() * 1000
        for command in commands:
            self.command(*command)
        self.index = indexes[-1]
        freshening.changed.set()
        while time.time() * 1000 - begin < 1000 * self.seconds:
            time.sleep(0.05)
        end = time.time() * 1000
        self.phases.append(Phase(name, begin, end, freshening.stop()))

    def command(self, *arguments: str) -> None:
        """A command of ``sidstream`` on this pipeline."""
        environment = {
            **os.environ,
            "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
        }
        found = subprocess.run(
            [sys.executable, "-m", "sidstream", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=_take_what_is_left,
        )
        if found.returncode:
            raise SystemExit(f"sidstream {' '.join(arguments)} has failed:\n{found.stdout}{found.stderr}")


def _take_what_is_left() -> None:
    """An operator's command runs on a machine of its own, as a rule: here it takes what the others leave."""
    os.setsid()
    give_way(os.getpid(), by=19)


def places(directory: Path) -> dict[str, str]:
    """Environment of a pipeline whose files are all in ``directory``, with a broker of its own on a free port."""
    return {
        "SIDSTREAM_BUNDLE": str(directory / "bundle"),
        "SIDSTREAM_BUNDLES": str(directory / "bundles"),
        "SIDSTREAM_INDEX": str(directory / "index"),
        "SIDSTREAM_INDEXES": str(directory / "indexes"),
        "SIDSTREAM_BROKER__DIRECTORY": str(directory / "broker"),
        "SIDSTREAM_BROKER__PORT": "0",
    }


def made_bundle(directory: Path, embeddings: Any, *, codebook_seed: int, model_seed: int) -> Bundle:
    """A bundle with a small model that was trained for a moment."""
    fitted = fit_bundle(embeddings, directory, FitSettings(size=64, iterations=5, seed=codebook_seed))
    ids = [f"item-{number}" for number in range(len(embeddings))]
    examples = [TrainingExample(query=f"thing number {number}", item=ids[number]) for number in range(1_000)]
    bundle, _ = train_bundle(
        fitted.bundle, examples, ids, fitted.codes, _model(), TrainingSettings(max_steps=30, seed=model_seed)
    )
    return fit_dense_part(bundle, embeddings, ids)


def _model() -> Any:
    from models.bundles.first_model import ModelSettings

    return ModelSettings(hidden_size=32, model_layers=1, heads=2, tokenizer_size=300)


@dataclass(frozen=True)
class Run:
    """One time through all phases."""

    heard: Heard
    phases: Sequence[Phase]

    def first_answers(self, number: int) -> list[tuple[float, str, str, str]]:
        """Of each query of a phase that was answered."""
        phase = self.phases[number]
        asked = self.heard.between(phase.begin, phase.end)
        once = [self.heard.answers[query][0] for query in asked if query in self.heard.answers]
        if not once:
            raise SystemExit(f"{phase.name}: none of {len(asked)} queries was answered")
        return once

    def query_p99_ms(self, number: int) -> float:
        """Of a phase."""
        return float(np.percentile([own[0] for own in self.first_answers(number)], 99))


def figures(runs: Sequence[Run], codebook_of: dict[str, str]) -> list[Result]:
    """All rows: of each phase against the first one of the same run."""
    results = []
    for number, phase in enumerate(runs[0].phases):
        asked = [
            (run.heard, query)
            for run in runs
            for query in run.heard.between(run.phases[number].begin, run.phases[number].end)
        ]
        once = [own for run in runs for own in run.first_answers(number)]
        bundles = Counter(own[1][:8] for own in once)
        by = ", ".join(f"{name} {count / len(once):.0%}" for name, count in bundles.most_common())
        results += [
            _against_before(
                f"{phase.name} ({by}): query p99", [[run.query_p99_ms(n) for run in runs] for n in (0, number)]
            ),
            _against_before(
                f"{phase.name}: freshness p99", [[run.phases[n].freshness_ms for run in runs] for n in (0, number)]
            ),
        ]
        wrong = {
            "not answered": sum(query not in heard.answers for heard, query in asked),
            "answered more than once": sum(len(heard.answers.get(query, ())) > 1 for heard, query in asked),
            "late, or another error": sum(bool(own[3]) for own in once),
            "of a bundle with another codebook": sum(codebook_of.get(own[1]) != own[2] for own in once),
        }
        results += [
            Result(f"{phase.name}: {what} of {len(asked):,}", n, "queries", target=NONE) for what, n in wrong.items()
        ]
    return results


def _against_before(name: str, p99s: Sequence[Sequence[float]]) -> Result:
    """``p99s``: of each run, before and now."""
    before, now = p99s
    if now == before:
        return Result(name, median(now), "ms")
    ratios = ", ".join(f"{own / first:.2f}" for first, own in zip(before, now, strict=True))
    shown = f"{name} [{ratios}]" if len(now) > 1 else name
    return Result(shown, median(now), "ms", "ms before", median(before), TWICE)


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--beams", type=int, default=10, help="of the search (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=300, help="queries a second (default: %(default)s)")
    parser.add_argument(
        "--updates", type=int, default=100, help="item updates a second beside them (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of a phase at least (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="times through all phases (default: %(default)s)")
    arguments = parser.parse_args()
    embeddings = np.random.default_rng(0).normal(size=(arguments.items, DIMENSION)).astype(np.float32)
    os.environ["SIDSTREAM_RETRIEVER__BEAMS"] = str(arguments.beams)
    with tempfile.TemporaryDirectory() as name:
        bundles = (
            made_bundle(Path(name, "first"), embeddings, codebook_seed=0, model_seed=0),
            made_bundle(Path(name, "other-model"), embeddings, codebook_seed=0, model_seed=1),
            made_bundle(Path(name, "other-codebook"), embeddings, codebook_seed=1, model_seed=0),
        )
        runs = []
        for number in range(arguments.runs):
            runs.append(_run(Path(name, f"run-{number}"), bundles, embeddings, arguments))
            if arguments.runs > 1:
                seen = ", ".join(
                    f"{phase.name} {runs[-1].query_p99_ms(n):.0f}" for n, phase in enumerate(runs[-1].phases)
                )
                print(f"run {number + 1} of {arguments.runs}, p99 in ms: {seen}", flush=True)
    codebook_of = {bundle.id: bundle.manifest.codebook_id for bundle in bundles}
    title = f"{arguments.rate} queries and {arguments.updates} updates a second, {arguments.items:,} items"
    if arguments.runs > 1:
        title += f", median of {arguments.runs} runs, each run's ratio in brackets"
    return report(title, figures(runs, codebook_of), arguments.json)


def _run(directory: Path, bundles: Sequence[Bundle], embeddings: Any, arguments: Any) -> Run:
    """A broker and a pipeline of its own, through all phases."""
    first, other_model, other_codebook = bundles
    os.environ |= places(directory) | {"SIDSTREAM_BUNDLE": str(first.directory)}
    items = [CatalogueItem(id=f"item-{n}", title=f"thing number {n}") for n in range(arguments.items)]
    with Pipeline(load_settings(), embedded_broker=True, log_directory=directory / "logs") as running:
        supervised = threading.Event()
        watching = threading.Thread(target=running.watch, args=(supervised,))
        watching.start()
        try:
            publish_items(running.settings, items, embeddings)
            await_items(running.settings.index, arguments.items)
            switch = Switch(running.settings, directory, embeddings, arguments.seconds, arguments.updates)
            asking = Asking(running.settings, arguments.rate)
            time.sleep(_WARM_UP_SECONDS)
            switch.phase("before")
            switch.phase("model swap", ("deploy", str(other_model.directory)), ("promote", other_model.id))
            switch.phase("catching up", ("deploy", str(other_codebook.directory)))
            switch.phase("canary", ("deploy", str(other_codebook.directory), "--share", "10%"))
            theirs = running.settings.indexes / other_codebook.manifest.codebook_id
            switch.phase("codebook switch", ("promote", other_codebook.id), then=theirs)
            switch.phase("rollback", ("rollback",), then=running.settings.index)
            return Run(asking.stop(), switch.phases)
        finally:
            supervised.set()
            watching.join()


def await_items(index: Path, count: int) -> None:
    """Until so many items are retrievable."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            with IndexReader(index) as reader, reader.snapshot() as snapshot:
                if snapshot.item_count >= count:
                    return
        except IndexMissingError:
            pass
        time.sleep(0.1)
    raise SystemExit("the items did not arrive")


if __name__ == "__main__":
    raise SystemExit(main())
