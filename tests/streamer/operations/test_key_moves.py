"""A key's newest record ends in its own partition, whatever is written, compacted or killed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.operations.key_moves import LEFT_BEHIND_AT, KeyHistory, Move, Note, Origin, Sighting

PARTITIONS, HOME = 3, 1


@dataclass(frozen=True)
class Record:
    offset: int
    time: int
    value: str | None
    note: Note | None = None


@dataclass
class Log:
    """One key's records in a topic of three partitions. Compaction does not touch what was written after ``protected_from``."""

    partitions: list[list[Record]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    ends: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    protected_from: list[int] | None = None

    def append(self, partition: int, time: int, value: str | None, note: Note | None = None) -> None:
        # Other keys' records lie in between.
        self.partitions[partition].append(Record(self.ends[partition], time, value, note))
        self.ends[partition] += 2

    def compact(self, partition: int, *, tombstones: bool = False) -> None:
        records = self.partitions[partition]
        kept = [
            record
            for number, record in enumerate(records)
            if number == len(records) - 1
            or (
                self.protected_from is not None
                and record.note is None
                and record.offset >= self.protected_from[partition]
            )
        ]
        self.partitions[partition] = [record for record in kept if not (tombstones and record.value is None)]

    def item(self) -> str | None:
        """What an index of this log has: the rule of ``store``."""
        last = [(records[-1].time, number) for number, records in enumerate(self.partitions) if records]
        return self.partitions[max(last)[1]][-1].value if last else None

    def showing(self) -> set[int]:
        return {number for number, records in enumerate(self.partitions) if records and records[-1].value is not None}


class Mover:
    """``sidstream topics repartition`` for one key, in steps between which anything may happen."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.read_to: dict[int, int] = {}
        self.seen: dict[int, list[Record]] = {}

    def look(self, partition: int) -> None:
        self.read_to[partition] = self.log.ends[partition]
        self.seen[partition] = list(self.log.partitions[partition])

    def decide(self) -> Move | None:
        history = KeyHistory()
        for partition in range(PARTITIONS):
            for one in self.seen[partition]:
                history.add(Sighting(partition, one.offset, one.time, one.value is None, one.note))
        return history.move(HOME)

    def write(self, move: Move) -> None:
        """All of it or nothing, as in a transaction; a source that was compacted away is left to the next look."""
        value = None
        if not move.deleted:
            partition, offset = move.newest
            found = [one for one in self.log.partitions[partition] if one.offset == offset]
            if not found:
                return
            value = found[0].value
        for partition in move.left_behind:
            self.log.append(partition, LEFT_BEHIND_AT, None, Note(self.read_to[partition]))
        if move.copied:
            self.log.append(HOME, move.time, value, Note(self.read_to[HOME], move.origin))

    def run(self) -> int:
        """Rounds that wrote something, until one finds nothing to do."""
        for rounds in range(10):
            for partition in range(PARTITIONS):
                self.look(partition)
            move = self.decide()
            if move is None:
                return rounds
            self.write(move)
        raise AssertionError("it does not come to an end")


PLACES = st.integers(0, PARTITIONS - 1)
WRITE = st.tuples(st.just("write"), PLACES, st.booleans())
STEPS = st.lists(
    st.one_of(
        WRITE,
        st.tuples(st.just("look"), PLACES, st.just(False)),
        st.tuples(st.just("look everywhere"), st.just(0), st.just(False)),
        st.tuples(st.just("move"), st.just(0), st.just(False)),
        st.tuples(st.just("compact"), PLACES, st.just(False)),
    ),
    max_size=30,
)


class World:
    """Plays a script: producers write into any partition while the mover looks, decides, writes or is killed in between."""

    def __init__(self) -> None:
        self.log = Log()
        self.mover = Mover(self.log)
        self.now = 1_000
        self.truth: str | None = None

    def play(self, steps: list[tuple[str, int, bool]], times: Any = None) -> None:
        for step, partition, deletes in steps:
            if step == "write":
                self.now = self.now + 1 if times is None else times.draw(st.integers(1, 8))
                self.truth = None if deletes else f"state {self.now} in {partition}"
                self.log.append(partition, self.now, self.truth)
            elif step == "look":
                self.mover.look(partition)
            elif step == "look everywhere":
                for every in range(PARTITIONS):
                    self.mover.look(every)
            elif step == "compact":
                self.log.compact(partition)
            elif len(self.mover.seen) == PARTITIONS:
                if (move := self.mover.decide()) is not None:
                    self.mover.write(move)
                self.mover.seen = {}  # a look serves one move; a killed mover begins anew, too


@settings(max_examples=600, deadline=None)
@given(before=st.lists(WRITE, max_size=6), steps=STEPS)
def test_newest_state_ends_at_home_alone_whatever_is_written_compacted_or_killed_meanwhile(
    before: list[tuple[str, int, bool]], steps: list[tuple[str, int, bool]]
) -> None:
    world = World()
    world.play(before)
    world.log.protected_from = list(world.log.ends)
    world.play(steps)
    world.mover.run()
    assert world.log.item() == world.truth
    assert world.log.showing() == (set() if world.truth is None else {HOME})
    assert Mover(world.log).run() == 0, "again: nothing to do"

    world.log.protected_from = None
    for partition in range(PARTITIONS):
        world.log.compact(partition)
    assert world.log.item() == world.truth
    for order in ((0, 1, 2), (2, 1, 0)):
        for partition in order:
            world.log.compact(partition, tombstones=True)
            assert world.log.item() == world.truth, "after the broker has removed the tombstones"


@settings(max_examples=300, deadline=None)
@given(data=st.data(), before=st.lists(WRITE, max_size=6), steps=STEPS)
def test_clocks_that_disagree_end_in_one_state_at_home_too(
    data: Any, before: list[tuple[str, int, bool]], steps: list[tuple[str, int, bool]]
) -> None:
    world = World()
    world.play(before, data)
    before_move = world.log.item()
    quiet = not steps
    world.log.protected_from = list(world.log.ends)
    world.play(steps, data)
    world.mover.run()
    state = world.log.item()
    assert world.log.showing() == (set() if state is None else {HOME})
    if quiet:
        assert state == before_move
    assert Mover(world.log).run() == 0


def test_deleted_keys_need_nothing() -> None:
    history = KeyHistory()
    history.add(Sighting(0, 4, 100, deleted=True))
    assert history.move(HOME) is None


def test_key_at_home_needs_nothing_and_one_elsewhere_is_moved_with_its_time() -> None:
    at_home, elsewhere = KeyHistory(), KeyHistory()
    at_home.add(Sighting(HOME, 4, 100, deleted=False))
    elsewhere.add(Sighting(2, 7, 100, deleted=False))
    assert at_home.move(HOME) is None
    move = elsewhere.move(HOME)
    assert move == Move(HOME, (2, 7), Origin(100, 2, 7), deleted=False, copied=True, left_behind=(2,))
    assert move is not None
    assert move.time == 100


def test_deletion_elsewhere_is_copied_over_the_state_that_it_hides_at_home() -> None:
    history = KeyHistory()
    history.add(Sighting(HOME, 4, 100, deleted=False))
    history.add(Sighting(2, 9, 200, deleted=True))
    move = history.move(HOME)
    assert move is not None
    assert (move.newest, move.deleted, move.copied, move.left_behind) == ((2, 9), True, True, ())


def test_update_that_came_between_the_look_and_the_copy_is_the_newest() -> None:
    history = KeyHistory()
    history.add(Sighting(2, 7, 100, deleted=False))
    history.add(Sighting(2, 9, LEFT_BEHIND_AT, True, Note(8)))
    history.add(Sighting(HOME, 20, 300, deleted=False))  # a producer's
    history.add(Sighting(HOME, 22, 100, False, Note(20, Origin(100, 2, 7))))  # ours, which had read to 20
    move = history.move(HOME)
    assert move is not None
    assert (move.newest, move.origin) == ((HOME, 20), Origin(300, HOME, 20))


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b"\xff", b"[1, [2]]", b'["x"]', b"null"])
def test_header_of_somebody_else_is_no_note(header: bytes) -> None:
    assert Note.decode(header) is None


def test_note_survives_its_encoding() -> None:
    for note in (Note(5), Note(9, Origin(1, 2, 3))):
        assert Note.decode(note.encode()) == note


def test_of_one_partition_the_later_offset_counts_even_if_its_time_is_earlier() -> None:
    history = KeyHistory()
    history.add(Sighting(2, 9, 50, deleted=False))  # came after 7 was read, before what is left behind
    history.add(Sighting(2, 11, LEFT_BEHIND_AT, True, Note(8)))
    history.add(Sighting(HOME, 22, 100, False, Note(20, Origin(100, 2, 7))))
    move = history.move(HOME)
    assert move is not None
    assert (move.newest, move.origin) == ((2, 9), Origin(50, 2, 9))
