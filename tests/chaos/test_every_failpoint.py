"""Every failpoint in turn: the process dies there, its successor takes over, and nothing is lost or there twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.checks import check_everything
from chaos.faults import FAILPOINTS, KillAt, Switch
from chaos.world import World

from store.failpoints import Failpoint


def test_every_failpoint_is_in_the_list() -> None:
    assert {point for _, point, _ in FAILPOINTS} == set(Failpoint)


@pytest.mark.parametrize("process", ["assigner", "indexer", "monitor", "retriever"])
def test_kill_9_at_every_failpoint_of_a_process_loses_nothing_and_repeats_nothing(
    process: str, tiny_model_bundle: Path, tmp_path: Path
) -> None:
    mine = [(point, passing) for name, point, passing in FAILPOINTS if name == process]
    with World(tmp_path, tiny_model_bundle, seed=len(process), ids=800, events_per_second=400) as world:
        world.await_all(180)
        for point, passing in mine:
            if point in (Failpoint.LAYOUT_WRITTEN, Failpoint.LAYOUT_COMMITTED, Failpoint.JOURNAL_SENT):
                world.do(Switch(300))
            world.do(KillAt(process, point, passing))
            assert world.occurrences[-1].kills == 2, f"{process} was not killed at {point}\n{world.logs()}"
        world.drain(60)
        check_everything(world.settings, world.producers.truth)
        world.stop_processes()
    assert not world.ended_by_themselves
