"""kill -9 and a full disk: the index is as after some whole batch, its offsets say which, and it goes on from there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from store.checks.verification import verify
from store.reading.reader import IndexReader
from store.writing.writer import IndexWriter
from support.paths import TESTS
from support.patience import PATIENCE_SECONDS
from support.plain_index import CODEBOOK, PlainIndex, random_events

OpenWriter = Callable[..., IndexWriter]
PARTITION = ("item-codes", 0)
EVENTS, IDS = 400, 3_000

# Applies batch n, which is made from the number n, for ever; starts at the offset that the index holds.
APPLY_FOR_EVER = f"""
import sys
from support.plain_index import CODEBOOK, batch_of, random_events
from store.writing.writer import IndexWriter
with IndexWriter.open(sys.argv[1], codebook_id=CODEBOOK, layers=3, size=16, map_size=256 * 1024) as writer:
    number = writer.offsets().get({PARTITION}, 0)
    while True:
        writer.apply(batch_of(random_events(number, {EVENTS}, ids={IDS})), {{{PARTITION}: number + 1}})
        number += 1
        print(number, flush=True)
"""

# Fills the disk (here: a limit on the size of a file), says so, gets more room and applies the same batch again.
FILL_THE_DISK = f"""
import resource, sys
from support.plain_index import CODEBOOK, batch_of, random_events
from store.errors import IndexFullError
from store.checks.verification import verify
from store.writing.writer import IndexWriter
with IndexWriter.open(sys.argv[1], codebook_id=CODEBOOK, layers=3, size=16) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    number = 0
    try:
        while True:
            writer.apply(batch_of(random_events(number, 5_000, ids=1_000_000)), {{{PARTITION}: number + 1}})
            number += 1
    except IndexFullError as error:
        print(number, error, flush=True)
    with writer.snapshot() as snapshot:
        assert snapshot.position.get({PARTITION}, 0) == number, snapshot.position
        assert verify(snapshot) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.apply(batch_of(random_events(number, 5_000, ids=1_000_000)), {{{PARTITION}: number + 1}})
"""


def run(program: str, path: Path) -> subprocess.Popen[str]:
    here = str(TESTS)
    program = f"import sys; sys.path.insert(0, {here!r})\n" + program
    return subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)


def test_killed_writer_leaves_whole_batches_and_its_successor_goes_on(open_writer: OpenWriter, path: Path) -> None:
    chance = random.Random(5)
    plain, applied = PlainIndex(), 0
    for _ in range(5):
        with run(APPLY_FOR_EVER, path) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 15)):  # it is surely at work …
                assert child.stdout.readline()
            time.sleep(chance.random() * 0.01)  # … and dies anywhere within a batch
            child.kill()
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            offset = snapshot.position[PARTITION]
            assert offset > applied
            for number in range(applied, offset):
                plain.apply(random_events(number, EVENTS, ids=IDS))
            applied = offset
            assert verify(snapshot) == []
            assert snapshot.digest() == plain.digest()
    assert open_writer().offsets() == {PARTITION: applied}


def test_full_disk_stops_with_what_to_do_and_loses_no_batch(path: Path) -> None:
    with run(FILL_THE_DISK, path) as child:
        told, _ = child.communicate(timeout=PATIENCE_SECONDS)
    assert child.returncode == 0
    batches = int(told.split()[0])
    assert "no offset moved: make room" in told
    plain = PlainIndex()
    for number in range(batches + 1):
        plain.apply(random_events(number, 5_000, ids=1_000_000))
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert snapshot.digest() == plain.digest()
        assert snapshot.codebook_id == CODEBOOK


def test_slot_of_a_killed_reader_is_freed_by_the_next_one(open_writer: OpenWriter, path: Path) -> None:
    writer = open_writer()
    hold = (
        "import sys, time; from store.reading.reader import IndexReader\n"
        "with IndexReader(sys.argv[1]) as reader, reader.snapshot(): print('held', flush=True); time.sleep(60)"
    )
    with run(hold, path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        pid = child.pid
        assert str(pid) in writer._environment.lmdb.readers()
        child.kill()
    with run("from store.reading.reader import IndexReader; IndexReader(sys.argv[1])", path) as next_reader:
        assert next_reader.wait(PATIENCE_SECONDS) == 0
    assert str(pid) not in writer._environment.lmdb.readers()
