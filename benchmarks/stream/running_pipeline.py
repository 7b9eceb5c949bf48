"""What is measured on a real broker: the pipeline's processes as a user runs them, and items for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.clock import task_of, threads_of
from models.bundles.bundle import create_bundle
from models.codebooks.codebook import fit_residual_kmeans
from models.sids.census import count_tokens
from models.sids.layout import Layout
from streamer.events.topics import TopicSpec, topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, load_settings

DIMENSION, LAYERS, SIZE = 384, 3, 256
BARE_TOPIC: Final = "benchmark-bare"
COPY_TOPIC: Final = "benchmark-copy"
HOP_TOPIC: Final = "benchmark-hop"  # what is copied within small transactions comes from there
PATIENCE_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.02
_COMPILERS: Final = ("C1 CompilerThre", "C2 CompilerThre")  # the kernel keeps 15 characters

status = Console(stderr=True).print


class Items:
    """New items without end: random ids, embeddings from 512 clusters of unequal size."""

    def __init__(self, pool: int = 16_384) -> None:
        self._random = np.random.default_rng(7)
        centres = self._random.normal(size=(512, DIMENSION))
        chosen = (512 * self._random.random(pool) ** 3).astype(int)
        points = centres[chosen] + 0.5 * self._random.normal(size=(pool, DIMENSION))
        self.embeddings: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype("<f4")

    def ids(self, count: int) -> list[str]:
        return [f"{number:016x}" for number in self._random.integers(2**63, size=count).tolist()]

    def embedding(self, row: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.embeddings[row % len(self.embeddings)]
        return found


@dataclass
class Running:
    """The processes under measurement, by name, and how much processor time each has used."""

    settings: Settings
    directory: Path
    broker: int  # its process' number
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def make_index(self) -> None:
        """By an indexer that comes and goes, where there is none yet."""
        if not self.settings.index.exists():
            self.start("indexer")
            self.stop()

    def start_seconds(self, name: str) -> float:
        """Processor time that the start of a process takes where nothing waits for it; 0 where there is no /proc."""
        self.start(name)
        time.sleep(1)
        seconds = self.processor_seconds().get(name, 0.0)
        self.stop()
        return seconds

    def profile_of(self, name: str) -> Path:
        """Where a process that is started ``profiled`` puts its profile."""
        return self.directory / f"{name}.profile.json"

    def start(self, name: str, *, profiled: bool = False, wait: bool = True) -> None:
        """Start ``sidstream <name>``, and wait until it says that it is ready: that it has caught up, where something waits."""
        module = ["benchmarks.stream.profiled", name, str(self.profile_of(name))] if profiled else ["sidstream", name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *module],
                env={**os.environ, **self._environment(), "SIDSTREAM_METRICS__PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait(lambda: _ready(port), f"{name} is ready")

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(30)
        self._processes.clear()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until ``condition`` holds; a process that died or a long wait ends the benchmark with its log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join((self.directory / f"{name}.log").read_text()[-3_000:] for name in self._processes)
                raise SystemExit(f"{f'{dead} died' if dead else 'too slow'}, waiting until {what}:\n{logs}")
            time.sleep(_POLL_SECONDS)

    def processor_seconds(self) -> dict[str, float]:
        """User and system time of each process and of the broker so far; empty where there is no /proc."""
        pids = {name: process.pid for name, process in self._processes.items()} | {"broker": self.broker}
        used: dict[str, float] = {}
        for name, pid in pids.items():
            with suppress(OSError):  # it has ended meanwhile
                used[name] = task_of(Path(f"/proc/{pid}")).seconds
        return used

    def compiler_seconds(self) -> float:
        """Processor time that the broker's compilers have used so far; 0 where there is no /proc."""
        threads = threads_of(Path(f"/proc/{self.broker}")).values()
        return sum(thread.seconds for thread in threads if thread.name in _COMPILERS)

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        return {
            "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "SIDSTREAM_BUNDLE": str(settings.bundle),
            "SIDSTREAM_INDEX": str(settings.index),
            "SIDSTREAM_TOPICS__PREFIX": settings.topics.prefix,
            "OMP_NUM_THREADS": "1",
        }


def apart(running: Running, prefix: str) -> Running:
    """The same broker and bundle with topics of their own, all empty, and no index yet."""
    settings = load_settings(
        bundle=running.settings.bundle,
        index=running.settings.index.with_name(f"{prefix}index"),
        kafka={"bootstrap_servers": running.settings.kafka.bootstrap_servers},
        topics={"prefix": prefix},
    )
    create(settings.kafka, list(topic_specs(settings)))
    return Running(settings, running.directory, running.broker)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def pipeline(directory: Path) -> Iterator[Running]:
    """A broker with the topics, and a bundle; the index is empty, and nothing else runs."""
    items = Items(8_192)
    codebook = fit_residual_kmeans(items.embeddings, layers=LAYERS, size=SIZE, iterations=5)
    census = count_tokens(codebook.encode(items.embeddings), SIZE)
    layout = Layout(generation=1, codebook_id=codebook.id, layers=LAYERS, size=SIZE)
    create_bundle(directory / "bundle", codebook, layout, census=census)
    defaults = load_settings()
    with LocalBroker(directory / "broker", heap=defaults.broker.heap) as broker:
        settings = load_settings(
            bundle=directory / "bundle",
            index=directory / "index",
            kafka={"bootstrap_servers": broker.bootstrap_servers},
        )
        updates, *others = topic_specs(settings)
        copies = [
            TopicSpec(name, updates.partitions, 1, updates.config) for name in (BARE_TOPIC, COPY_TOPIC, HOP_TOPIC)
        ]
        create(settings.kafka, [updates, *others, *copies])
        yield Running(settings, directory, broker.pid)
