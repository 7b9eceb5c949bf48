"""The reader of an index directory: it opens the files, and gives a snapshot whenever one is asked for."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from store.errors import IndexUsageError
from store.files import environment
from store.reading.snapshot import BetweenBlocks, Snapshot


class IndexReader:
    """Reads an index directory, read-only; a context manager.

    >>> with IndexReader(path) as reader, reader.snapshot() as snapshot:  # doctest: +SKIP
    ...     snapshot.item_count
    """

    def __init__(self, path: str | os.PathLike[str], *, between_blocks: BetweenBlocks | None = None) -> None:
        """``between_blocks``: called between two blocks of what its snapshots read whole (paths, vectors, attributes); it may
        rest there, or raise.

        Raises ``IndexMissingError`` if there is no index yet, ``IndexNotUpgradedError`` (one of those) if an older sidstream
        made it, ``IndexFormatError`` if it is newer than this code."""
        self.path = Path(path)
        self._between_blocks = between_blocks
        self._environment: environment.Environment | None = environment.acquire(self.path, write=False)
        try:
            with self.snapshot():
                pass
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """What is committed now: ``with reader.snapshot() as snapshot``."""
        if self._environment is None:
            raise IndexUsageError(f"The reader of the index {self.path} was used after it was closed: open it again.")
        return Snapshot.of(self._environment, self._between_blocks)

    @property
    def last_transaction(self) -> int:
        """Number of the last transaction that was committed: another one says that a new snapshot may show other things.

        It reads one page and opens no snapshot, so that it may be asked a thousand times a second.
        """
        if self._environment is None:
            raise IndexUsageError(f"The reader of the index {self.path} was used after it was closed: open it again.")
        return int(self._environment.lmdb.info()["last_txnid"])

    def close(self) -> None:
        """Releases the files; closing again does nothing."""
        if self._environment is not None:
            environment.release(self._environment)
            self._environment = None

    def __enter__(self) -> IndexReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
