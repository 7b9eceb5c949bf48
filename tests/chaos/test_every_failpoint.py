"""Every failpoint in turn: the process dies there, its successor takes over, and nothing is lost or there twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chaos.checks import check_everything
from chaos.faults import FAILPOINTS, KillAtEach, Switch
from chaos.world import World

from store.failpoints import Failpoint

# They are passed when the layout changes.
_OF_A_SWITCH = (Failpoint.LAYOUT_WRITTEN, Failpoint.LAYOUT_COMMITTED, Failpoint.JOURNAL_SENT)


def visits() -> Iterator[KillAtEach | Switch]:
    """All of them; a successor that has just taken over dies at the next one, unless that needs a switch."""
    for process in ("assigner", "indexer", "monitor", "retriever"):
        mine = [(point, passing) for name, point, passing in FAILPOINTS if name == process]
        for point, passing in mine:
            if point in _OF_A_SWITCH:
                yield Switch(300)
                yield KillAtEach(process, ((point, passing),))
        yield KillAtEach(process, tuple((point, passing) for point, passing in mine if point not in _OF_A_SWITCH))


def test_every_failpoint_is_in_the_list() -> None:
    assert {point for _, point, _ in FAILPOINTS} == set(Failpoint)


def test_kill_9_at_every_failpoint_of_every_process_loses_nothing_and_repeats_nothing(
    tiny_model_bundle: Path, tmp_path: Path
) -> None:
    visited = 0
    with World(tmp_path, tiny_model_bundle, seed=8, ids=800, events_per_second=400) as world:
        world.await_all(180)
        for fault in visits():
            world.do(fault)
            if isinstance(fault, KillAtEach):
                kills = world.occurrences[-1].kills
                assert kills == 1 + len(fault.visits), (
                    f"{fault.process} did not die at {fault.visits[kills - 1]}\n{world.logs()}"
                )
                visited += len(fault.visits)
        world.drain(60)
        check_everything(world.settings, world.producers.truth)
        world.stop_processes()
    assert visited == len(FAILPOINTS)
    assert not world.ended_by_themselves
