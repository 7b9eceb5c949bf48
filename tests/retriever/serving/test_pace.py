"""A load rests while queries are answered, and gives up for whoever needs its snapshot to end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from retriever.serving.answering import Answering, CurrentAnswering
from retriever.serving.loaded_bundle import LoadedBundle
from retriever.serving.pace import LoadInterruptedError, Pace, short_turns
from store.reading.reader import IndexReader
from store.records.batch import CodesBatch
from store.writing.writer import IndexWriter


class Rests(threading.Event):
    """A stop that notes how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture
def current() -> CurrentAnswering:
    return CurrentAnswering(Answering(cast(LoadedBundle, object())))


def test_load_rests_twice_as_long_as_it_worked_beside_a_batch_and_not_at_all_beside_none(
    current: CurrentAnswering,
) -> None:
    rests = Rests()
    pace = Pace(current, rests)
    pace()
    assert rests.seconds == []
    with current.held():
        time.sleep(0.01)
        pace()
    [rest] = rests.seconds
    assert rest >= 0.02
    pace()
    assert rests.seconds == [rest]
    with current.held():
        pass
    pace()
    assert len(rests.seconds) == 2, "a batch came and went"


def test_load_ends_with_the_process_and_for_whoever_awaits_its_snapshot_and_not_once_it_is_over(
    current: CurrentAnswering,
) -> None:
    stop = Rests()
    pace = Pace(current, stop)
    with pytest.raises(LoadInterruptedError, match="the index grew"):
        pace(True)
    stop.set()
    with pytest.raises(LoadInterruptedError, match="the retriever ends"):
        pace()
    pace.end()
    pace(True)


@pytest.mark.parametrize(
    "read",
    [lambda snapshot: snapshot.all_vectors(), lambda snapshot: snapshot.all_attributes(), lambda snapshot: snapshot.all_paths()],
    ids=["vectors", "attributes", "paths"],
)  # fmt: skip
def test_index_is_read_in_pieces_and_says_that_its_snapshot_is_awaited(
    tmp_path: Path, read: Callable[[Any], Any]
) -> None:
    told: list[bool] = []
    with IndexWriter.open(tmp_path / "index", codebook_id="0123456789abcdef", layers=3, size=16) as writer:
        codes = np.random.default_rng(0).integers(16, size=(5_000, 3)).astype(np.uint16)
        ids = [f"item-{number}".encode() for number in range(len(codes))]
        count = len(ids)
        writer.apply(
            CodesBatch(
                ids, codes, np.ones(count, np.float32), [""] * count, np.zeros(count, np.int64), np.zeros(count, bool)
            ),
            {},
        )
        waiting = threading.Thread(target=lambda: writer._environment.resize(0), daemon=True)

        def between(awaited: bool) -> None:
            told.append(awaited)
            if not waiting.ident:
                waiting.start()
            deadline = time.monotonic() + 30
            while not writer._environment.snapshots_are_awaited and time.monotonic() < deadline:
                time.sleep(0.005)

        with IndexReader(writer.path, between_blocks=between) as reader, reader.snapshot() as snapshot:
            blocks = len(list(read(snapshot)))
        waiting.join(30)
    assert len(told) == blocks >= 2
    assert told[0] is False
    assert all(told[1:])


def test_threads_take_short_turns_during_a_load_and_as_before_after_it_even_if_it_fails() -> None:
    before = sys.getswitchinterval()
    during = []

    def load() -> None:
        with short_turns():
            during.append(sys.getswitchinterval())
            raise LoadInterruptedError("the retriever ends")

    with pytest.raises(LoadInterruptedError):
        load()
    assert during[0] < before / 10
    assert sys.getswitchinterval() == before
