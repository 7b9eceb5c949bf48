"""The vectors in memory follow the index: any batches, a log that does not reach back, a directory that is replaced."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.dense.space import DenseSpace, KnownItems, id_hashes
from models.dense.vectors import quantise
from retriever.dense.current_vectors import CurrentVectors
from retriever.dense.item_vectors import ItemVectors
from store.reading.reader import IndexReader
from store.reading.snapshot import Snapshot
from store.writing import log_writer
from store.writing.writer import IndexWriter
from support.plain_index import CODEBOOK, Event, batch_of

DIMENSION = 5
IDS = [b"a", b"b", b"c", b"d", b"e", b"f"]
SPACE = DenseSpace(DIMENSION, KnownItems.of(id_hashes(IDS[:3])))
KEPT = [
    b"",
    *quantise(np.random.default_rng(0).standard_normal((5, DIMENSION))).encode(),
    b"no vector of ours",
    bytes(9),
]


def content(table: ItemVectors, snapshot: Snapshot) -> dict[bytes, tuple[bytes, bool]]:
    ids = [item.id for item in snapshot.items(table.numbers)]
    return {
        item_id: (row.tobytes(), bool(new)) for item_id, row, new in zip(ids, table.vectors, table.new, strict=True)
    }


def expected(live: dict[bytes, bytes]) -> dict[bytes, tuple[bytes, bool]]:
    table = ItemVectors(SPACE)
    usable = {item_id: value for item_id, value in live.items() if value in KEPT[1:6]}
    rows = np.stack([KEPT.index(value) - 1 for value in usable.values()]) if usable else np.empty(0, np.int64)
    vectors = quantise(np.random.default_rng(0).standard_normal((5, DIMENSION)))
    table.put(np.arange(len(usable)), type(vectors)(vectors.steps[rows], vectors.scales[rows]), id_hashes(usable))
    return {
        item_id: (row.tobytes(), item_id not in IDS[:3]) for item_id, row in zip(usable, table.vectors, strict=True)
    }


event = st.builds(
    Event,
    id=st.sampled_from(IDS),
    codes=st.one_of(st.none(), st.tuples(*[st.integers(0, 2)] * 3)),
    title=st.sampled_from(["", "title"]),
    vector=st.sampled_from(KEPT),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.lists(event, max_size=6), st.booleans()), max_size=8), st.sampled_from([None, 2]))
def test_table_is_that_of_the_snapshot_after_any_batches(
    batches: list[tuple[list[Event], bool]], log_items: int | None
) -> None:
    live: dict[bytes, bytes] = {}
    current = CurrentVectors(SPACE)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        if log_items is not None:
            patch.setattr(log_writer, "MINIMUM_LOG_ITEMS", log_items)
        with IndexWriter.open(Path(directory) / "index", codebook_id=CODEBOOK, layers=3, size=3) as writer:
            for events, looked_at in batches:
                writer.apply(batch_of(events), {})
                for one in events:
                    live.pop(one.id, None)
                    if one.codes is not None:
                        live[one.id] = one.vector
                if looked_at:
                    with writer.snapshot() as snapshot:
                        assert content(current.at(snapshot), snapshot) == expected(live)
            with writer.snapshot() as snapshot:
                assert content(current.at(snapshot), snapshot) == expected(live)


def test_directory_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    current = CurrentVectors(SPACE)
    for generation in range(2):
        with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=3, size=3) as writer:
            writer.apply(batch_of([Event(IDS[generation], (0, 0, 0), vector=KEPT[1 + generation])]), {})
        with IndexReader(tmp_path / "index") as reader, reader.snapshot() as snapshot:
            assert content(current.at(snapshot), snapshot) == expected({IDS[generation]: KEPT[1 + generation]})
        shutil.rmtree(tmp_path / "index")


def test_changes_alone_are_read_and_what_did_not_change_keeps_its_row(tmp_path: Path) -> None:
    current = CurrentVectors(SPACE)
    with IndexWriter.open(tmp_path / "index", codebook_id=CODEBOOK, layers=3, size=3) as writer:
        writer.apply(batch_of([Event(item_id, (0, 1, 2), vector=KEPT[1]) for item_id in IDS]), {})
        with writer.snapshot() as snapshot:
            table = current.at(snapshot)
        writer.apply(batch_of([Event(IDS[2], (0, 1, 2), vector=KEPT[2]), Event(IDS[5], None)]), {})
        with writer.snapshot() as snapshot:
            assert current.at(snapshot) is table
            assert len(table) == 5
            assert content(table, snapshot) == expected(dict.fromkeys(IDS[:5], KEPT[1]) | {IDS[2]: KEPT[2]})
