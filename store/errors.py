"""Every refusal of the store; each message says what happened, to which directory, and what to do."""

from __future__ import annotations

from models.errors import SidstreamError


class StoreError(SidstreamError):
    """The root of the store's errors."""


class IndexMissingError(StoreError):
    """There is no index in the directory (yet)."""


class IndexNotUpgradedError(IndexMissingError):
    """An older sidstream made the index: there is none that this one reads until the indexer has upgraded it in place."""


class IndexLockedError(StoreError):
    """Another process writes this index."""


class IndexMismatchError(StoreError):
    """The index, or a layout, belongs to another codebook or another shape (layers, size)."""


class IndexFormatError(StoreError):
    """The directory holds a newer format, or something that is not an index of ours."""


class IndexFullError(StoreError):
    """The disk is full, or no slot for another reader is left; nothing of the batch was written."""


class IndexAccessError(StoreError):
    """LMDB cannot open, read or write the files: permissions, a failing disk, a damaged file."""


class IndexUsageError(StoreError):
    """The caller broke a rule of LMDB: use after close, across a fork, growth below an open snapshot."""


class BackupError(StoreError):
    """A backup cannot be made or put back; what was there is as it was."""


class BatchError(StoreError):
    """A batch that cannot be stored: shapes that disagree, an id or a code out of range. Nothing was written."""


REBUILD_ADVICE = (
    "The index is a cache of Kafka: delete the directory, or start with another path, and the indexer rebuilds it."
)
