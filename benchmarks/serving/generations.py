"""What a second codebook that catches up costs the one that answers: freshness before and meanwhile, and how long it takes.

Real processes of ``sidstream up`` on an embedded broker, without a retriever: the machine is shared as on one host. A producer
sends a steady stream of updates all the while; freshness is from ``produce`` to the index.

    python -m benchmarks generations --items 100000 --share 0.33 --share 1
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.bundles.building import FitSettings, fit_bundle
from streamer.client.freshness_probe import FreshnessProbe
from streamer.client.publisher import ItemPublisher
from streamer.client.read_your_writes import await_indexed
from streamer.local.up import Pipeline
from streamer.operations.generations.deploy import DeployOptions, deploy
from streamer.operations.generations.retire import retire
from streamer.settings import Settings, load_settings

_DIMENSION: Final = 64
_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 10.0
_PATIENCE: Final = 600.0


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--updates-per-second", type=int, default=100)
    parser.add_argument("--share", type=float, action="append", help="generations.catching_up_share; repeatable")
    arguments = parser.parse_args()
    runs = [_run(arguments.items, arguments.updates_per_second, share) for share in arguments.share or [0.33, 1.0]]
    print(json.dumps({"items": arguments.items, "updates_per_second": arguments.updates_per_second, "runs": runs}))


def _run(items: int, rate: int, share: float) -> dict[str, Any]:
    embeddings = np.random.default_rng(7).normal(size=(items, _DIMENSION)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="sidstream-generations-") as folder:
        directory = Path(folder)
        for name, seed in (("bundle", 0), ("other", 1)):
            fit_bundle(embeddings[:8_192], directory / name, FitSettings(iterations=3, seed=seed))
        # By the environment, so that the processes have them too.
        os.environ["SIDSTREAM_BUNDLE"] = str(directory / "bundle")
        os.environ["SIDSTREAM_INDEX"] = str(directory / "index")
        os.environ["SIDSTREAM_GENERATIONS__CATCHING_UP_SHARE"] = str(share)
        settings = load_settings(
            bundles=directory / "bundles",
            indexes=directory / "indexes",
            broker={"directory": directory / "broker", "port": 0},
        )
        running = Pipeline(settings, embedded_broker=True, retrievers=0, log_directory=directory / "logs")
        with running, _watched(running):
            return {"share": share, **_measured(running.settings, directory / "other", embeddings, rate)}


def _measured(settings: Settings, other: Path, embeddings: NDArray[np.float32], rate: int) -> dict[str, Any]:
    with ItemPublisher(settings) as publisher:
        for number, embedding in enumerate(embeddings):
            publisher.update(f"item-{number}", embedding, title=f"thing {number}")
    await_indexed(settings, publisher.delivered, seconds=_PATIENCE)
    time.sleep(_SETTLE_SECONDS)
    with _updates(settings, embeddings, rate) as before:
        time.sleep(_SECONDS)
    started = time.monotonic()
    with _updates(settings, embeddings, rate) as meanwhile:
        serving = deploy(settings, str(other), DeployOptions(seconds=_PATIENCE))
        seconds = time.monotonic() - started
    retire(settings, serving.deployed[-1].bundle, seconds=_PATIENCE)
    return {
        "caught_up_in_s": round(seconds, 1),
        "items_per_second": round(len(embeddings) / seconds),
        "before": _figures(before),
        "meanwhile": _figures(meanwhile),
        "p99_ratio": round(meanwhile.percentile_ms(99) / before.percentile_ms(99), 2),
    }


def _figures(probe: FreshnessProbe) -> dict[str, float]:
    return {"updates": probe.seen} | {f"p{p}_ms": round(probe.percentile_ms(p), 1) for p in (50, 95, 99)}


@contextmanager
def _watched(running: Pipeline) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=running.watch, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _updates(settings: Settings, embeddings: NDArray[np.float32], rate: int) -> Iterator[FreshnessProbe]:
    """A steady stream of updates, each told to the probe; all of them are seen at the end."""
    stop = threading.Event()

    def run() -> None:
        number = 0
        with ItemPublisher(settings) as publisher:
            while not stop.wait(1 / rate):
                number += 1
                item, at = number % len(embeddings), time.time_ns() // 1_000_000
                probe.sent(f"item-{item}", at)
                publisher.update(f"item-{item}", embeddings[item], updated_at=at)
                publisher.poll()

    with FreshnessProbe(settings.index) as probe:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield probe
        finally:
            stop.set()
            thread.join()
            probe.wait(60)


if __name__ == "__main__":
    main()
