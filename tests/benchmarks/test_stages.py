"""The table by stage: from a profiler, of functions that exist, and it adds up to the whole."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from types import FunctionType

import pytest

from benchmarks.stream.profiled import Profile, Sampler, name_of, turn_of
from benchmarks.stream.stages import COMMIT, STAGES, Stage, stage_rows


@pytest.mark.parametrize(
    "stage", [*STAGES["assigner"].all(), *COMMIT.all(), *STAGES["indexer"].all()], ids=lambda s: s.label
)
def test_every_stage_is_a_function_of_ours(stage: Stage) -> None:
    assert isinstance(stage.resolved(), FunctionType)


@pytest.mark.parametrize("process", list(STAGES))
def test_what_is_counted_is_the_outermost_stage(process: str) -> None:
    owner, name = turn_of(process)
    assert getattr(owner, name) is STAGES[process].resolved()


@pytest.mark.parametrize("process", list(STAGES))
def test_rows_add_up_to_the_whole(process: str) -> None:
    trees = [STAGES[process], COMMIT]
    seconds = {name_of(stage.resolved()): 0.5 for tree in trees for stage in tree.all()}
    for tree in trees:
        for stage in tree.all():  # what is inside is a part of what is around it
            seconds[name_of(stage.resolved())] = 0.5 * sum(1 for _ in stage.all())
    *rows, whole = stage_rows(process, Profile(seconds, {"rdk:broker": 0.25}, 20.0), 1_000, 7.0, {})
    assert sum(row.value for row in rows) == pytest.approx(whole.value) == 20_000.0
    assert {row.value for row in rows[: sum(1 for _ in STAGES[process].all())]} == {500.0}
    assert whole.baseline_value == 7.0


def _work(finished: threading.Event | None = None) -> None:
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass
    if finished is not None:  # what it used is counted while it is still there
        finished.wait()


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no clock of another thread")
def test_profile_counts_the_processor_time_of_every_thread_from_the_first_turn_on_and_no_wait() -> None:
    sampler, finished = Sampler(), threading.Event()
    used = 0.0

    def turn() -> None:
        nonlocal used
        began = time.thread_time()
        time.sleep(0.3)
        thread = threading.Thread(target=_work, args=[finished])
        thread.start()
        _work()
        while time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) < 0.2:  # however busy the machine is
            pass
        _work()
        finished.set()
        thread.join()
        used = time.thread_time() - began

    _work()  # the start
    sampler.counted(turn)()
    found = sampler.result()
    assert 0.5 <= found.functions[name_of(_work)] <= found.whole, "of both threads, and not the start"
    assert 0.35 <= found.functions[name_of(turn)] <= used + 0.05, "of its own thread alone, and not the wait"
    assert Profile(**json.loads(json.dumps(asdict(found)))) == found
