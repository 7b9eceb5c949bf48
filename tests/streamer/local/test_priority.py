"""A process of a candidate comes after others while nobody is answered from it, and is as they are once somebody is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from streamer.local.priority import give_way, may_change, take_part

pytestmark = pytest.mark.skipif(not may_change(), reason="a low priority could not be taken back here")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """It has two threads, and leads a session."""
    program = "import threading as h, time as t; h.Thread(target=t.sleep, args=(600,)).start(); print(flush=True); t.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def nice_of_threads(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def test_all_threads_of_a_process_give_way_and_take_part_again(process: subprocess.Popen[bytes]) -> None:
    own = os.nice(0)
    assert give_way(process.pid)
    assert nice_of_threads(process.pid) == {min(19, own + 10)}
    assert take_part(process.pid)
    assert nice_of_threads(process.pid) == {own}


def test_process_that_leads_no_session_yet_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not give_way(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        process.kill()


def test_process_that_has_ended_is_no_fault() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        process.wait()
    give_way(process.pid)
