"""A write transaction of the index that grows a full map, and says what a full disk means.

What must hold: work that did not end has changed nothing, and can be done again.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from typing import Any, Final, TypeVar

import lmdb
import structlog

from store.errors import REBUILD_ADVICE, IndexAccessError, IndexFullError
from store.files.environment import DATA_FILE, Environment

# LMDB reports a write that the file system cut short, which is how a filling disk begins, as EIO.
_DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_log = structlog.get_logger(__name__)
_Result = TypeVar("_Result")


def in_transaction(shared: Environment, work: Callable[[Any], _Result]) -> _Result:
    """What ``work`` gives in one transaction; where the map is full it is doubled, and the work is done again.

    Raises:
        IndexFullError: the disk took no more.
        IndexAccessError: LMDB refused to write.
    """
    while True:
        try:
            with shared.lmdb.begin(write=True) as transaction:
                return work(transaction)
        except lmdb.MapFullError as error:
            _grow(shared, error)
        except lmdb.DiskError as error:
            raise _disk_full(shared, error) from error
        except (lmdb.Error, OSError) as error:
            if (getattr(error, "code", 0) or getattr(error, "errno", 0)) in _DISK_ERRORS:
                raise _disk_full(shared, error) from error
            raise IndexAccessError(
                f"The batch could not be written to the index {shared.path}: {error}. Nothing of it was stored. "
                f"Start the process again; if that does not help: {REBUILD_ADVICE}"
            ) from error


def _grow(shared: Environment, error: lmdb.MapFullError) -> None:
    """Doubles the map, as far as the disk has room for it."""
    shared.lmdb.reader_check()
    now = int(shared.lmdb.info()["map_size"])
    used = (shared.path / DATA_FILE).stat().st_size
    room = used + shutil.disk_usage(shared.path).free
    larger = min(2 * now, room // 4096 * 4096)
    if larger <= now:
        raise _disk_full(shared, error)
    shared.resize(larger)
    _log.info("index_map_grown", path=str(shared.path), from_bytes=now, to_bytes=larger)


def _disk_full(shared: Environment, error: Exception) -> IndexFullError:
    free = shutil.disk_usage(shared.path).free
    return IndexFullError(
        f"The disk of the index {shared.path} took no more data ({error}; {free / 1e6:,.0f} MB free): it is full, a "
        "quota or a limit on file sizes is reached, or it fails. Nothing of this batch was stored and no offset "
        "moved: make room or move the directory, then start the indexer again."
    )
