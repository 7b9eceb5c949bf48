"""An index of an older format becomes one of this format, in place.

What must hold: until the last transaction the index is one of the old format and whole, whatever ends the process; an
upgrade that was cut short goes on where it stood, unless something else has written to the index since.

Formats 1 and 2 kept their paths in the database ``trie``: key c1, values c2…cL and the item number. Format 3 has ``paths``
(``store.records.encoding``), the commit log ``changes``, and a lineage. Format 1 has no split keys, either: its items get
their origin when they next change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from store.errors import REBUILD_ADVICE, IndexAccessError
from store.files.environment import Environment
from store.reading.facts import IndexFacts, renew_lineage, write_facts
from store.records.encoding import FORMAT_VERSION, UPGRADED_FORMATS, ItemEncoding, PathEncoding, number_keys
from store.writing.failpoints import Failpoint, reach
from store.writing.transactions import in_transaction

_PROGRESS_KEY: Final = b"upgrade"  # in ``meta``, while an upgrade lasts
_RECORDS: Final = 200_000  # moved in one transaction: a second of work, a few thousand dirty pages
_LINE_SECONDS: Final = 3.0  # between two lines that say how far it is

_log = structlog.get_logger(__name__)


class _Progress(msgspec.Struct, frozen=True):
    """``done`` records of the first-layer token ``first`` and all of those below it are moved, ``moved`` in all.

    ``transaction``: LMDB's number of the one that wrote this. If it is not the index's last one, an older sidstream has
    written to the index since, and what was moved is worth nothing.
    """

    first: int = 0
    done: int = 0
    moved: int = 0
    transaction: int = 0


def upgrade(
    shared: Environment,
    facts: IndexFacts,
    *,
    on_progress: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    records: int = _RECORDS,
) -> IndexFacts:
    """Brings an index to this format; the facts that it then has. Nothing is done where it has it already.

    ``on_progress`` is called after each transaction; ``clock``: seconds; ``records``: how many are moved in one.

    Raises:
        IndexAccessError: the index is damaged.
        IndexFullError: the disk has no room for the paths beside the trie; the index is as it was.
    """
    if facts.format_version not in UPGRADED_FORMATS:
        return facts
    shared.open_databases(create=True)
    move = _Move(shared, facts)
    say = _Lines(shared, facts, move, clock)
    while not move.ended:
        in_transaction(shared, lambda transaction: move.next(transaction, records))
        reach(Failpoint.UPGRADE_COMMITTED)
        on_progress()
        say.moved(move.progress.moved)
    upgraded = in_transaction(shared, move.end)
    reach(Failpoint.UPGRADE_COMMITTED)
    say.ended()
    return upgraded


class _Move:
    """The records of the trie on their way into ``paths``, first-layer token by first-layer token."""

    def __init__(self, shared: Environment, facts: IndexFacts) -> None:
        self._shared = shared
        self._facts = facts
        self._databases = shared.databases
        trie = shared.former_database("trie")
        if trie is None:
            raise self._damaged("its trie is missing")
        self._trie = trie
        self._paths = PathEncoding(facts.layers, facts.size)
        self._items = ItemEncoding(facts.layers)
        self._record = np.dtype([("codes", ">u2", (facts.layers,)), ("number", ">u4")])
        self._sorted: tuple[int, NDArray[Any]] | None = None  # the records of one first-layer token
        with shared.lmdb.begin() as transaction:
            self.total = int(transaction.stat(trie)["entries"])
            found = transaction.get(_PROGRESS_KEY, db=self._databases["meta"])
        self.progress = _Progress() if found is None else msgspec.json.decode(found, type=_Progress)
        if self.progress.transaction != shared.lmdb.info()["last_txnid"]:
            self.progress = _Progress()

    @property
    def ended(self) -> bool:
        return self.progress.first >= self._facts.size

    def next(self, transaction: Any, records: int) -> None:
        """Moves the next so many records."""
        if not self.progress.moved:
            transaction.drop(self._databases["paths"], delete=False)  # what an upgrade left that cannot go on
        first, done, moved = self.progress.first, self.progress.done, 0
        cursor = transaction.cursor(self._databases["paths"])
        while first < self._facts.size and moved < records:
            codes, numbers = self._records_of(transaction, first)
            end = min(len(numbers), done + records - moved)
            if end > done:
                weights = self._weights_of(transaction, numbers[done:end])
                pairs = self._paths.encode_in_order(codes[done:end], numbers[done:end], weights)
                cursor.putmulti(pairs, append=True)  # a record is the greatest of its key; appending keeps pages full
            moved += end - done
            first, done = (first + 1, 0) if end == len(numbers) else (first, end)
        progress = _Progress(first, done, self.progress.moved + moved, transaction.id())
        transaction.put(_PROGRESS_KEY, msgspec.json.encode(progress), db=self._databases["meta"])
        reach(Failpoint.UPGRADE_WRITTEN)
        self.progress = progress

    def _records_of(self, transaction: Any, first: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
        """Codes (R, L) and numbers (R,) of the items below a first-layer token, in the order of ``paths``."""
        if self._sorted is None or self._sorted[0] != first:
            width = self._record.itemsize - 2
            key = first.to_bytes(2, "big")
            joined = transaction.cursor(self._trie).getmulti([key], dupdata=True, dupfixed_bytes=width, keyfixed=True)
            found = np.frombuffer(joined, self._record)
            codes = found["codes"]
            order = np.lexsort((found["number"], codes[:, 1], *codes[:, 2:].T[::-1]))
            self._sorted = first, found[order]
        found = self._sorted[1]
        return found["codes"].astype(np.uint16), found["number"].astype(np.uint32)

    def _weights_of(self, transaction: Any, numbers: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Weights of items (R,), which the trie did not have."""
        distinct, places = np.unique(numbers, return_inverse=True)
        found = transaction.cursor(self._databases["items"]).getmulti(number_keys(distinct))
        if len(found) != len(distinct):
            raise self._damaged("its trie names an item that is missing")
        return self._items.weights_of([value for _, value in found])[places]

    def end(self, transaction: Any) -> IndexFacts:
        """The last transaction: from here on the index has this format."""
        moved = transaction.stat(self._databases["paths"])["entries"]
        if moved != self.total:
            raise self._damaged(f"{moved} of {self.total} records of its trie became paths")
        meta = self._databases["meta"]
        transaction.drop(self._trie, delete=True)
        transaction.delete(_PROGRESS_KEY, b"", meta)
        renew_lineage(transaction, self._databases)
        upgraded = msgspec.structs.replace(self._facts, format_version=FORMAT_VERSION)
        write_facts(transaction, self._databases, upgraded)
        reach(Failpoint.UPGRADE_WRITTEN)
        return upgraded

    def _damaged(self, what: str) -> IndexAccessError:
        return IndexAccessError(
            f"The index {self._shared.path} is damaged: {what}. It was not upgraded. {REBUILD_ADVICE}"
        )


class _Lines:
    """Says in the log how far the upgrade is."""

    def __init__(self, shared: Environment, facts: IndexFacts, move: _Move, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._total = move.total
        self._began = self._said = clock()
        self._log = _log.bind(path=str(shared.path), from_format=facts.format_version, to_format=FORMAT_VERSION)
        self._log.info("index_upgrade_begun", items=move.progress.moved, total=self._total)

    def moved(self, items: int) -> None:
        if self._clock() - self._said >= _LINE_SECONDS:
            self._said = self._clock()
            self._log.info("index_upgrade_progress", items=items, total=self._total)

    def ended(self) -> None:
        self._log.info("index_upgraded", items=self._total, seconds=round(self._clock() - self._began, 1))
