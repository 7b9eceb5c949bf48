"""Faults as data: what is done to the pipeline and when, and scripts of them made from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from store.writing.failpoints import Failpoint

# Which process passes which failpoint, and how often it has done so before anything is at stake: the indexer stores the
# bundle's layout at its start.
FAILPOINTS: Final[tuple[tuple[str, Failpoint, int], ...]] = (
    *((process, point, 1) for process in ("assigner", "retriever") for point in tuple(Failpoint)[:4]),
    ("indexer", Failpoint.BATCH_WRITTEN, 1),
    ("indexer", Failpoint.BATCH_COMMITTED, 1),
    ("indexer", Failpoint.ATTRIBUTES_WRITTEN, 1),
    ("indexer", Failpoint.ATTRIBUTES_COMMITTED, 1),
    ("indexer", Failpoint.COUNTS_SENT, 2),
    ("indexer", Failpoint.LAYOUT_WRITTEN, 2),
    ("indexer", Failpoint.LAYOUT_COMMITTED, 2),
    ("monitor", Failpoint.JOURNAL_SENT, 1),
    ("monitor", Failpoint.JOURNAL_COMMITTED, 1),
    ("monitor", Failpoint.CHANGELOG_WRITTEN, 1),
    ("monitor", Failpoint.COUNTS_COMMITTED, 1),
)


@dataclass(frozen=True)
class Kill:
    """``kill -9``, and at once a new one."""

    process: str


@dataclass(frozen=True)
class KillAt:
    """``kill -9`` of the process, then of each successor when it passes its failpoint for the so-many-th time; the last
    successor lives. ``sure``: each has to die there; otherwise a passing that does not come soon is given up.
    ``meanwhile``: the script goes on. ``crowd``: once it is armed, so many items crowd onto one layer-2 token, and later onto
    another one, until the monitor switches the layout and the process has been in the middle of that."""

    process: str
    visits: tuple[tuple[Failpoint, int], ...]
    sure: bool = False
    meanwhile: bool = False
    crowd: int = 0


@dataclass(frozen=True)
class Terminate:
    """SIGTERM: it has to end by itself with status 0."""

    process: str


@dataclass(frozen=True)
class Pause:
    """SIGSTOP for a while: its sessions and transactions may time out meanwhile."""

    process: str
    seconds: float


@dataclass(frozen=True)
class AddWorker:
    """A second assigner or retriever in the same group."""

    process: str


@dataclass(frozen=True)
class RemoveWorker:
    """The second one ends by SIGTERM."""

    process: str


@dataclass(frozen=True)
class BrokerKill:
    """``kill -9`` of Kafka, and at once a new start on its data."""


@dataclass(frozen=True)
class BrokerPause:
    """SIGSTOP of Kafka for a while."""

    seconds: float


@dataclass(frozen=True)
class DuplicateTail:
    """The producer sends its newest events again, in their order, as one that never heard of its success would."""

    events: int


@dataclass(frozen=True)
class MapFull:
    """So many new items with long titles that the index's map is full."""

    items: int


@dataclass(frozen=True)
class DiskFull:
    """No room on the index's file system for a while."""

    seconds: float


@dataclass(frozen=True)
class Switch:
    """Items crowd onto one layer-2 token, so that the monitor switches the layout."""

    items: int


@dataclass(frozen=True)
class ClockJump:
    """The wall clock of every process jumps, for a while."""

    seconds: float
    lasting: float


Fault: TypeAlias = (
    Kill
    | KillAt
    | Terminate
    | Pause
    | AddWorker
    | RemoveWorker
    | BrokerKill
    | BrokerPause
    | DuplicateTail
    | MapFull
    | DiskFull
    | Switch
    | ClockJump
)


@dataclass(frozen=True)
class Step:
    """``wait`` seconds, then the fault."""

    wait: float
    fault: Fault


# The retriever takes longest to start, and a monitor's partition is given away only after six seconds.
_VICTIMS: Final = {"assigner": 5, "indexer": 5, "monitor": 1, "retriever": 2}


def every_failpoint() -> Iterator[Fault]:
    """A visit to each of them, to those of a switch with a crowd. Retriever and monitor start slowly: they go meanwhile."""
    of_a_switch = (Failpoint.LAYOUT_WRITTEN, Failpoint.LAYOUT_COMMITTED, Failpoint.JOURNAL_SENT)
    for process in ("retriever", "assigner", "indexer", "monitor"):
        mine = [(point, passing) for name, point, passing in FAILPOINTS if name == process]
        for point, passing in mine:
            if point in of_a_switch:
                yield KillAt(process, ((point, passing),), sure=True, crowd=300)
        others = tuple((point, passing) for point, passing in mine if point not in of_a_switch)
        yield KillAt(process, others, sure=True, meanwhile=process in ("retriever", "monitor"))


def script(seed: int, kills: int) -> Iterator[Step]:
    """At least ``kills`` kills with everything else between them, always the same for a seed; every kind of fault occurs."""
    dice = random.Random(seed)
    names, weights = list(_VICTIMS), list(_VICTIMS.values())
    others: list[Fault] = []
    done = 0
    while done < kills or others:
        if not others and done < kills:
            others = _every_other_fault(dice)
            dice.shuffle(others)
            adds, removes = (
                next(place for place, fault in enumerate(others) if isinstance(fault, kind))
                for kind in (AddWorker, RemoveWorker)
            )
            if adds < removes:  # they are taken from the end
                others[adds], others[removes] = others[removes], others[adds]
        # Three kills, then one of the others, until both are used up.
        for _ in range(3):
            [victim] = dice.choices(names, weights)
            if dice.random() < 0.5:
                process, point, passing = dice.choice([entry for entry in FAILPOINTS if entry[0] == victim])
                crowd = 0
                if point in (Failpoint.LAYOUT_WRITTEN, Failpoint.LAYOUT_COMMITTED):
                    crowd = 400  # there must be a switch to be in the middle of
                elif process in ("assigner", "indexer"):
                    passing += dice.choice([0, 0, 1, 3])
                yield Step(dice.uniform(0.3, 2.0), KillAt(process, ((point, passing),), crowd=crowd))
                done += 2
            else:
                yield Step(dice.uniform(0.3, 2.5), Kill(victim))
                done += 1
        yield Step(dice.uniform(0.2, 1.5), others.pop())


def _every_other_fault(dice: random.Random) -> list[Fault]:
    worker = dice.choice(["assigner", "retriever"])
    return [
        RemoveWorker(worker),
        Terminate(dice.choice(list(_VICTIMS))),
        Pause(dice.choice(list(_VICTIMS)), 2.0),
        Pause("assigner", 7.0),  # longer than its session
        AddWorker(worker),
        BrokerKill(),
        BrokerPause(dice.choice([2.0, 5.0])),
        BrokerPause(12.0),  # longer than a broker's session: it is fenced
        DuplicateTail(dice.randint(50, 2_000)),
        MapFull(3_000),
        DiskFull(1.0),
        Switch(400),
        Switch(400),
        ClockJump(dice.choice([-86_400.0, -3_600.0, 3_600.0, 86_400.0]), 2.0),
    ]
