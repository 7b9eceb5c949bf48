"""An index of this format that older code wrote (a fixture): what that code did wrong is put right as the writer goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.checks.verification import verify
from store.files import environment
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from support.plain_index import Event, batch_of

FIXTURES = Path(__file__).parent / "fixtures"
OpenWriter = Callable[..., IndexWriter]


@pytest.fixture
def expected(path: Path) -> dict[str, Any]:
    """What is known of the index in ``path``: it forgot deletions in the midst of a batch that deleted an item, and of one that
    brought another back."""
    path.mkdir()
    packed = (FIXTURES / "format_3_misfits.mdb.gz").read_bytes()
    (path / environment.DATA_FILE).write_bytes(gzip.decompress(packed))
    return dict(json.loads((FIXTURES / "format_3_misfits.json").read_text()))


def test_deletions_that_were_forgotten_in_the_midst_of_a_batch_are_told_and_put_right_at_the_next_pruning(
    open_writer: OpenWriter, path: Path, expected: dict[str, Any]
) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert verify(snapshot) == expected["faults"]
    writer = open_writer(clock=lambda: expected["written_at"] + 1)
    writer.apply(batch_of([]), {})
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == []
        assert snapshot.digest() == expected["digest"]
        assert snapshot.split_key_examples(9) == [(b"again", [0, 2])]
        of_moved = snapshot.deletion(b"moved")
        assert of_moved is not None
        assert (of_moved.partition, of_moved.noted_at) == (1, expected["written_at"] * 1000)


def test_ids_that_have_attributes_and_no_item_are_counted_when_the_writer_opens_an_index_without_the_count(
    open_writer: OpenWriter, path: Path, expected: dict[str, Any]
) -> None:
    """It has attributes of a live item, of one that is not there yet, and two removals: one hides another partition's record."""
    progress: list[None] = []
    assert open_writer(on_progress=lambda: progress.append(None)).waiting_attributes() == 1
    assert progress


def test_deletion_of_another_partition_that_stood_alone_still_counts_once_it_is_put_right(
    open_writer: OpenWriter, expected: dict[str, Any]
) -> None:
    """Its partition's next record is older than it: the item stays what the other partition says."""
    writer = open_writer(clock=lambda: expected["written_at"] + 1)
    writer.apply(batch_of([]), {})
    writer.apply(batch_of([Event(b"again", None, partition=0, timestamp=1)]), {})
    with writer.snapshot() as snapshot:
        assert verify(snapshot) == []
        found = snapshot.deletion(b"again")
        assert found is not None
        assert found.partition == 2
