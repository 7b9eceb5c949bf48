"""What ``meta`` says of an index: what never changes, and what every commit renews.

What must hold: an index of another format is told from one that is missing, with what to do.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from store.errors import REBUILD_ADVICE, IndexFormatError, IndexMissingError, IndexNotUpgradedError
from store.records.encoding import FORMAT_VERSION, OF_SOME_PARTITIONS, UPGRADED_FORMATS

_LINEAGE_KEY: Final = b"lineage"  # in ``meta``


class IndexFacts(msgspec.Struct, frozen=True):
    """What never changes while an index lives; ``created_at`` in milliseconds since the epoch.

    ``partitions``: those of the topic of codes that it holds, as its writer named them; empty: all.
    """

    format_version: int
    codebook_id: str
    layers: int
    size: int
    created_at: int
    partitions: str = ""


class IndexState(msgspec.Struct, frozen=True):
    """What every commit renews; ``last_commit_at`` in milliseconds since the epoch, 0 before the first.

    ``commit``: batches so far that changed an item; the commit log has the ``log_items`` item changes of all commits above
    ``log_floor``. ``waiting_attributes``: ids that have attributes of ``item-attributes`` and no item; ``None``: not counted, as
    an older sidstream, which drops what it does not know, was the last to write.
    """

    next_number: int = 0
    last_commit_at: int = 0
    commit: int = 0
    log_floor: int = 0
    log_items: int = 0
    waiting_attributes: int | None = None


def read_facts(transaction: Any, databases: dict[str, Any], path: Path) -> IndexFacts:
    """The facts of an index; raises ``IndexMissingError``, ``IndexNotUpgradedError``, ``IndexFormatError``."""
    facts = read_facts_of_any_format(transaction, databases, path)
    if facts.format_version != FORMAT_VERSION:
        raise IndexNotUpgradedError(
            f"The index {path} has format {facts.format_version}, this sidstream reads {FORMAT_VERSION}: the indexer "
            "upgrades it in place when it starts. Start the indexer with this path."
        )
    return facts


def read_facts_of_any_format(transaction: Any, databases: dict[str, Any], path: Path) -> IndexFacts:
    """The facts of an index that this sidstream reads or upgrades; raises ``IndexMissingError``, ``IndexFormatError``."""
    value = transaction.get(b"index", db=databases["meta"])
    if value is None:
        raise IndexMissingError(f"{path} holds no index yet: wait until the indexer has created it.")
    # Only the version is read first: a newer format may have other fields.
    version = msgspec.json.decode(value).get("format_version")
    if isinstance(version, int) and version > OF_SOME_PARTITIONS:
        version -= OF_SOME_PARTITIONS
    if version != FORMAT_VERSION and version not in UPGRADED_FORMATS:
        raise IndexFormatError(
            f"The index {path} has format {version}, this sidstream reads {FORMAT_VERSION}: update sidstream. "
            f"Or: {REBUILD_ADVICE}"
        )
    return msgspec.structs.replace(msgspec.json.decode(value, type=IndexFacts), format_version=version)


def write_facts(transaction: Any, databases: dict[str, Any], facts: IndexFacts) -> None:
    """Stores the facts of a new or upgraded index."""
    if facts.partitions:
        facts = msgspec.structs.replace(facts, format_version=facts.format_version + OF_SOME_PARTITIONS)
    transaction.put(b"index", msgspec.json.encode(facts), db=databases["meta"])


def read_state(transaction: Any, databases: dict[str, Any]) -> IndexState:
    """The state as of the last commit."""
    value = transaction.get(b"state", db=databases["meta"])
    return IndexState() if value is None else msgspec.json.decode(value, type=IndexState)


def read_lineage(transaction: Any, databases: dict[str, Any]) -> int:
    """The number that the index drew when it was made or restored: 64 random bits."""
    return int.from_bytes(transaction.get(_LINEAGE_KEY, b"", db=databases["meta"]), "big")


def renew_lineage(transaction: Any, databases: dict[str, Any]) -> None:
    """Draws the index's lineage: of a new one, and of one that goes on from a backup."""
    transaction.put(_LINEAGE_KEY, secrets.token_bytes(8), db=databases["meta"])
