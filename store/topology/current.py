"""The topology of the snapshot at hand: built once, then rolled forward along the index's log of changes.

What must hold: ``at`` gives exactly the paths of its snapshot, not of a later or an earlier commit.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import structlog

from store.reading.snapshot import Snapshot
from store.records.change_log import Changes
from store.topology.topology import Topology, topology_of

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Step:
    """The topology of a snapshot, and the ``changes`` since the commit ``since`` that led to it: None if it was built anew."""

    topology: Topology
    since: int | None
    changes: Changes | None


@dataclass(frozen=True)
class _Held:
    incarnation: int
    commit: int
    topology: Topology


class CurrentTopology:
    """One a process and index directory; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def at(self, snapshot: Snapshot) -> Topology:
        """The topology of this snapshot; read anew, seconds for ten million items, where the log no longer reaches back."""
        return self.step(snapshot).topology

    def step(self, snapshot: Snapshot) -> Step:
        """As ``at``, with the changes for whoever keeps more than the paths."""
        with self._lock:
            held = self._held
            if held is not None and held.incarnation == snapshot.incarnation:
                changes = snapshot.changes_since(held.commit)
                if changes is not None:
                    topology = held.topology.with_changes(changes.entered, changes.left)
                    self._held = _Held(held.incarnation, changes.commit, topology)
                    return Step(topology, held.commit, changes)
            topology = self._built(snapshot)
            # A snapshot older than what is held, of another thread, does not turn the others back.
            if held is None or held.incarnation != snapshot.incarnation or held.commit < snapshot.commit:
                self._held = _Held(snapshot.incarnation, snapshot.commit, topology)
            return Step(topology, None, None)

    def _built(self, snapshot: Snapshot) -> Topology:
        started = time.monotonic()
        topology = topology_of((codes for codes, _ in snapshot.all_paths()), snapshot.layers, snapshot.size)
        _log.info("topology_read", items=snapshot.item_count, seconds=round(time.monotonic() - started, 2))
        return topology
