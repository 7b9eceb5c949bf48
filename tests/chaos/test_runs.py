"""Whole runs: a script of faults from a seed under load, then everything that was published is compared with what there is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import get_args

import pytest

from chaos.checks import aborted_records, check_everything, check_topology
from chaos.faults import (
    FAILPOINTS,
    AddWorker,
    BrokerKill,
    BrokerPause,
    ClockJump,
    DiskFull,
    DuplicateTail,
    Fault,
    Kill,
    MapFull,
    Pause,
    RemoveWorker,
    Step,
    Switch,
    Terminate,
    every_failpoint,
    script,
)
from chaos.report import figures
from chaos.world import World
from store.reading.reader import IndexReader
from store.writing.failpoints import Failpoint
from streamer.indexer.rebuild import rebuild
from support.patience import PATIENCE_SECONDS

# Read here: the tests run without any of our variables.
SEEDS = [int(seed) for seed in os.environ.get("SIDSTREAM_CHAOS_SEEDS", "1,2,3").split(",")]
REPORT = os.environ.get("SIDSTREAM_CHAOS_REPORT")
LONG_KILLS = 200
OF_COMMANDS = {
    Failpoint.SERVING_SENT,
    Failpoint.SERVING_COMMITTED,
    Failpoint.BUNDLE_STORED,
    Failpoint.CODES_TOPIC_CREATED,
    Failpoint.GROUP_DELETED,
    Failpoint.CODES_TOPIC_DELETED,
    Failpoint.INDEX_DELETED,
}
DRAIN_SECONDS = 2 * PATIENCE_SECONDS


def run(directory: Path, bundle: Path, steps: list[Step], *, seed: int, ids: int, events_per_second: float) -> str:
    """One run and all comparisons; its report."""
    with World(directory, bundle, seed=seed, ids=ids, events_per_second=events_per_second) as world:
        world.await_all(PATIENCE_SECONDS)
        world.run(steps)
        world.await_recovery(PATIENCE_SECONDS)
        world.drain(DRAIN_SECONDS)
        seconds = time.monotonic() - world.began
        compared = check_everything(world.settings, world.producers.truth)
        world.supervisor.terminate_all()
        aborted = aborted_records(world.settings)
        rebuilt = rebuild(world.settings, directory / "rebuilt")
        with IndexReader(world.settings.index) as reader, reader.snapshot() as snapshot:
            assert rebuilt.digest == snapshot.digest()
            check_topology(snapshot, world.seen.topology, world.seen.rolled_forward)
        return figures(world, seed=seed, seconds=seconds, aborted=aborted, compared=compared)


def test_every_failpoint_is_in_the_list() -> None:
    """But those of an old index's upgrade, which tests/store/writing/test_writer_upgrade.py visits, as here every index is new,
    and those of commands, which tests/streamer/operations/generations/test_deploy.py visits."""
    of_an_upgrade = {Failpoint.UPGRADE_WRITTEN, Failpoint.UPGRADE_COMMITTED}
    assert {point for _, point, _ in FAILPOINTS} == set(Failpoint) - of_an_upgrade - OF_COMMANDS


@pytest.mark.timeout(3_600)
def test_short_run_of_every_failpoint_and_every_kind_of_fault_leaves_exactly_what_was_published(
    tiny_model_bundle: Path, tmp_path: Path
) -> None:
    faults: list[Fault] = [
        *every_failpoint(),
        AddWorker("assigner"),
        DuplicateTail(500),
        MapFull(1_500),
        DiskFull(0.5),
        Switch(300),
        ClockJump(-3_600.0, 0.5),
        Kill("assigner"),
        RemoveWorker("assigner"),
        Pause("indexer", 1.0),
        BrokerPause(8.0),
        BrokerKill(),
        Terminate("indexer"),
    ]
    assert {type(fault) for fault in faults} == set(get_args(Fault))
    report = run(
        tmp_path, tiny_model_bundle, [Step(0.3, fault) for fault in faults], seed=1, ids=2_000, events_per_second=600
    )
    print(report)
    assert "Not seen to recover" not in report
    deaths = report.split("Deaths at failpoints: ")[1]
    assert all(f"{process} {point}" in deaths for process, point, _ in FAILPOINTS)
    # An indexer whose disk is full may end and say so: that is what the fault is for.
    said = [line for line in (tmp_path / "indexer.log").read_text().splitlines() if line.startswith("error: ")]
    full = bool(said) and all(line.startswith("error: The disk of the index") for line in said)
    only_the_indexer = f"started again: indexer with status 1: {len(said)}." in report
    assert "started again: none" in report or (full and only_the_indexer), f"no process ended by itself: {said}"


@pytest.mark.chaos
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", SEEDS)
def test_long_run_of_two_hundred_kills_leaves_exactly_what_was_published(
    tiny_model_bundle: Path, tmp_path: Path, seed: int
) -> None:
    steps = list(script(seed, LONG_KILLS))
    report = run(tmp_path, tiny_model_bundle, steps, seed=seed, ids=8_000, events_per_second=1_000)
    print(report)
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(report + "\n")
    kills = int(report.split("**")[1].split()[0])
    aborted = int(report.split("aborted transactions in the log: ")[1].split()[0].replace(",", ""))
    assert kills >= LONG_KILLS
    assert aborted > 0, "no kill hit an open transaction: the run proves nothing"
