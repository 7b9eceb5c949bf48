"""The order in which processes are asked to end, and what becomes of one that does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamer.local.supervisor import Supervisor
from support.processes import wait_until

# Writes when it was asked to end; `deaf` goes on for ever.
CHILD = """
import signal, sys, time
name, log = sys.argv[1:]
def on_signal(number, frame):
    with open(log, "a") as file:
        file.write(f"{name}\\n")
    if name != "deaf":
        time.sleep(0.3)  # a batch in hand
        sys.exit(0)
signal.signal(signal.SIGTERM, on_signal)
with open(log, "a") as file:
    file.write(f"+{name}\\n")
while True:
    time.sleep(60)
"""


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Supervisor:
    """Its children are small scripts instead of sidstream."""
    original = subprocess.Popen

    def small(command: list[str], **arguments: object) -> subprocess.Popen[bytes]:
        return original([sys.executable, "-c", CHILD, command[-1], str(tmp_path / "order")], **arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", small)
    monkeypatch.setattr("streamer.local.supervisor.KILL_MARGIN_SECONDS", 0.5)
    return Supervisor({}, None, shutdown_seconds=2.0)


def order(tmp_path: Path) -> list[str]:
    file = tmp_path / "order"
    return file.read_text().split() if file.exists() else []


def test_all_finish_their_batches_side_by_side_within_one_deadline(supervisor: Supervisor, tmp_path: Path) -> None:
    names = ["assigner", "indexer", "monitor", "retriever"]
    for name in names:
        supervisor.start(name, [name])
    wait_until(lambda: len(order(tmp_path)) == 4, seconds=20, what="four processes")
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 2.0, "their last batches are finished side by side"
    assert sorted(order(tmp_path)[4:]) == names, "each was asked once, and none was killed"


def test_process_that_does_not_end_is_killed_when_its_deadline_has_passed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    for name in ("deaf", "retriever"):
        supervisor.start(name, [name])
    wait_until(lambda: len(order(tmp_path)) == 2, seconds=20, what="two processes")
    pid = supervisor.pid("deaf")
    assert pid is not None
    started = time.monotonic()
    supervisor.stop()
    assert 2.4 < time.monotonic() - started < 6
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_kill_ends_all_at_once_and_nothing_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    for name in ("deaf", "indexer"):
        supervisor.start(name, [name])
    wait_until(lambda: len(order(tmp_path)) == 2, seconds=20, what="two processes")
    pids = [supervisor.pid(name) for name in ("deaf", "indexer")]
    supervisor.kill()
    wait_until(
        lambda: supervisor.pid("deaf") is None and supervisor.pid("indexer") is None, seconds=5, what="their end"
    )
    time.sleep(0.6)
    supervisor.check()
    time.sleep(0.6)
    supervisor.check()
    assert supervisor.pid("deaf") is None
    assert supervisor.pid("indexer") is None
    assert all(pid is not None for pid in pids)


def test_signals_go_out_in_reverse_order_of_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []

    class Child:
        def __init__(self, command: list[str], **_arguments: object) -> None:
            self.name, self.pid = command[-1], 0

        def poll(self) -> None: ...

        def send_signal(self, number: int) -> None:
            sent.append((self.name, number))

        def wait(self, _seconds: float) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Child)
    supervisor = Supervisor({})
    for name in ("assigner", "indexer", "monitor", "retriever"):
        supervisor.start(name, [name])
    supervisor.stop()
    assert sent == [(name, signal.SIGTERM) for name in ("retriever", "monitor", "indexer", "assigner")]
