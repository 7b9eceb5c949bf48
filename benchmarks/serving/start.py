"""A retriever is killed and asked: seconds until it answers again, and the processor time of its start.

    python -m benchmarks start [--json PATH] [--rounds N] [--items N]

Broker, assigner, indexer, monitor and retriever run as `sidstream up` runs them, first with processes that import everything by
themselves (`--no-preload`), which is the baseline, then with the fork server. A round kills the retriever with SIGKILL, asks at
once, and takes the time until the answer is there: its floor is the supervisor's look (0.2 s), a fork, a read of the record of
what serves, the model's weights, a join of the group and one transaction. The processor time is that of the process which
answered, from its start to its answer; a forked one's imports were paid for once, by the server.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.common.clock import task_of
from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.serving.switch import DIMENSION, await_items, made_bundle, places
from models.catalogue import CatalogueItem
from retriever.client import Client
from streamer.client.publisher import publish_items
from streamer.local.up import Pipeline
from streamer.settings import load_settings

SECONDS: Final = Target.value_at_most(3.0)
_PATIENCE_SECONDS: Final = 120.0
_SETTLED_SECONDS: Final = 21.0  # a process that dies sooner after its start is started again after a pause


def restarts(directory: Path, embeddings: np.ndarray, rounds: int, *, preload: bool) -> tuple[list[float], list[float]]:
    """Seconds until an answer, and processor seconds, of each round."""
    os.environ |= places(directory)
    items = [CatalogueItem(id=f"item-{n}", title=f"thing number {n}") for n in range(len(embeddings))]
    waited, spent = [], []
    with Pipeline(load_settings(), embedded_broker=True, log_directory=directory / "logs", preload=preload) as running:
        supervised = threading.Event()
        watching = threading.Thread(target=running.watch, args=(supervised,))
        watching.start()
        try:
            publish_items(running.settings, items, embeddings)
            await_items(running.settings.index, len(embeddings))
            with Client(running.settings) as client:
                client.ask(text="thing number 1", limit=10, timeout_seconds=_PATIENCE_SECONDS)
                for number in range(rounds):
                    time.sleep(_SETTLED_SECONDS)
                    before = running.supervisor.pid("retriever")
                    assert before is not None
                    os.kill(before, 9)
                    since = time.perf_counter()
                    answer = client.ask(text=f"thing number {number}", limit=10, timeout_seconds=_PATIENCE_SECONDS)
                    waited.append(time.perf_counter() - since)
                    after = running.supervisor.pid("retriever")
                    if answer.error is not None or after in (before, None):
                        raise SystemExit(f"round {number}: {answer.error or 'the retriever was not started again'}")
                    spent.append(task_of(Path(f"/proc/{after}")).seconds)
        finally:
            supervised.set()
            watching.join()
    return waited, spent


def main() -> int:
    """Runs the benchmark; 1 if a target is missed."""
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    embeddings = np.random.default_rng(0).normal(size=(arguments.items, DIMENSION)).astype(np.float32)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for preload in (False, True):
            directory = Path(name) / str(preload)
            made_bundle(directory / "bundle", embeddings, codebook_seed=0, model_seed=0)
            found[preload] = restarts(directory, embeddings, arguments.rounds, preload=preload)
    (alone, alone_spent), (forked, forked_spent) = ((map(np.median, found[preload])) for preload in (False, True))
    return report(
        f"A retriever that is killed answers again ({arguments.items:,} items)",
        [
            Result("kill -9 of a retriever → it answers again", forked, "s", "imports by itself", alone, SECONDS),
            Result("the slowest of the rounds", max(found[True][0]), "s", "imports by itself", max(found[False][0])),
            Result("processor time of its start", forked_spent, "s", "imports by itself", alone_spent, SECONDS),
        ],
        arguments.json,
    )


if __name__ == "__main__":
    raise SystemExit(main())
