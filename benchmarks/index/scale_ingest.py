"""Catalogues for the benchmark of scale, and the process that updates one at a steady rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.sids.layout import Layout
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter

CODEBOOK: Final = "0123456789abcdef"
LAYERS: Final = 3
_LOAD_BATCH: Final = 200_000  # as an indexer that is far behind
_LEAST_BATCH: Final = 50  # ten milliseconds' worth at 5,000 a second, as the indexer's batches
_GREATEST_BATCH: Final = 10_000


def crowded_codes(random: np.random.Generator, count: int, size: int) -> NDArray[np.uint16]:
    """Codes (count, 3) with the crowded middle layer of a real catalogue."""
    weights = 1.0 / np.arange(1, size + 1) ** 0.9
    second = random.choice(size, p=weights / weights.sum(), size=count)
    codes = (random.integers(size, size=count), second, random.integers(size, size=count))
    return np.stack(codes, axis=1).astype(np.uint16)


def ids_of(numbers: NDArray[np.int64]) -> list[bytes]:
    """Ids of the items with these numbers (n,)."""
    return [b"%016x" % key for key in (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).tolist()]


def batch_of(numbers: NDArray[np.int64], codes: NDArray[np.uint16], weights: NDArray[np.float32]) -> CodesBatch:
    """Items of the catalogue by their numbers (n,); ids are spread like random ones, and the same for the same number."""
    return CodesBatch(
        ids=ids_of(numbers),
        codes=codes,
        weights=weights,
        titles=["Stainless steel kettle, 1.7 litres, cordless"] * len(numbers),
        updated_at=np.full(len(numbers), 1_700_000_000_000),
        deleted=np.zeros(len(numbers), np.bool_),
    )


def load(directory: Path, items: int, size: int, codebook: str = CODEBOOK) -> NDArray[np.int64]:
    """Fills an index, which is read from no topic yet; returns the census of layer 2."""
    random = np.random.default_rng(0)
    with IndexWriter.open(directory, codebook_id=codebook, layers=LAYERS, size=size, map_size=1 << 33) as writer:
        for begin in range(0, items, _LOAD_BATCH):
            numbers = np.arange(begin, min(items, begin + _LOAD_BATCH))
            codes = crowded_codes(random, len(numbers), size)
            writer.apply(batch_of(numbers, codes, random.random(len(numbers), np.float32)), {})
        return writer.census()[1]


@dataclass(frozen=True)
class Done:
    """What the updating process did: batches a second would be a wish, this is a count."""

    updates: int
    seconds: float


class Updates:
    """A process that updates items of one index until it is told to stop; a context manager."""

    def __init__(self, directory: Path, items: int, size: int, rate: int) -> None:
        context: Any = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_update, args=(directory, items, size, rate, theirs), daemon=True)
        self.done: Done | None = None

    def __enter__(self) -> Updates:
        self._process.start()
        self._pipe.recv()  # its first batch is committed
        return self

    def put_layout(self, layout: Layout) -> float:
        """Has the layout written between two batches; the moment when the record came to the process, by the monotonic clock."""
        self._pipe.send(layout)
        moment: float = self._pipe.recv()
        return moment

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self.done = self._pipe.recv()
        self._process.join()


def _update(directory: Path, items: int, size: int, rate: int, pipe: Connection) -> None:
    random = np.random.default_rng(1)
    updates, started = 0, time.monotonic()
    with IndexWriter.open(directory, codebook_id=CODEBOOK, layers=LAYERS, size=size) as writer:
        while True:
            behind = int(rate * (time.monotonic() - started)) - updates  # what waits goes into one batch
            count = min(max(behind, _LEAST_BATCH), _GREATEST_BATCH)
            numbers = np.unique(random.integers(items, size=count))
            codes = crowded_codes(random, len(numbers), size)
            writer.apply(batch_of(numbers, codes, random.random(len(numbers), np.float32)), {})
            if not updates:
                started = time.monotonic()
                pipe.send(True)
            updates += len(numbers)
            due = started + updates / rate
            while pipe.poll(max(0.0, due - time.monotonic())):
                asked = pipe.recv()
                if asked is None:
                    pipe.send(Done(updates, time.monotonic() - started))
                    return
                moment = time.monotonic()
                writer.put_layout(asked, {})
                pipe.send(moment)
