"""A directory becomes an index, or is one already: of this codebook and of these partitions, or it is refused.

What must hold: nothing is written to an index of something else.
"""

from __future__ import annotations

from pathlib import Path

from store.errors import REBUILD_ADVICE, IndexFormatError, IndexMismatchError
from store.files.environment import Environment
from store.reading.facts import IndexFacts, read_facts_of_any_format, renew_lineage, write_facts


def create_or_check(shared: Environment, directory: Path, wanted: IndexFacts) -> IndexFacts:
    """Writes the facts of a new index, or holds those of an existing one against what is wanted; the facts that it has.

    Raises:
        IndexFormatError: no index of ours, or one of a newer format.
        IndexMismatchError: another codebook, or other partitions of the topic of codes.
    """
    if not shared.open_databases(create=False):
        if shared.lmdb.stat()["entries"]:
            raise IndexFormatError(f"{directory} holds an LMDB environment that is not sidstream's: use another path.")
        shared.open_databases(create=True)
    with shared.lmdb.begin(write=True) as transaction:
        if transaction.get(b"index", db=shared.databases["meta"]) is None:
            write_facts(transaction, shared.databases, wanted)
            renew_lineage(transaction, shared.databases)
            return wanted
        found = read_facts_of_any_format(transaction, shared.databases, directory)
    if found.codebook_id != wanted.codebook_id:
        raise IndexMismatchError(
            f"The index {directory} was built with codebook {found.codebook_id}, this process has "
            f"{wanted.codebook_id}. {REBUILD_ADVICE}"
        )
    if (found.layers, found.size) != (wanted.layers, wanted.size):
        raise IndexMismatchError(
            f"The index {directory} has {found.layers} layers × {found.size} codewords, this process "
            f"{wanted.layers} × {wanted.size}. {REBUILD_ADVICE}"
        )
    if found.partitions != wanted.partitions:
        raise IndexMismatchError(
            f"The index {directory} holds {named_partitions(found.partitions)}, and this process is to hold "
            f"{named_partitions(wanted.partitions)} (indexer.partitions). Set that to what the index holds, or give this process "
            f"an index directory of its own. Or: {REBUILD_ADVICE}"
        )
    return found


def named_partitions(partitions: str) -> str:
    """What an index holds, for a message; empty: all."""
    return f"the partitions {partitions}" if partitions else "all partitions"
