"""The order in which processes are asked to end, and what becomes of one that does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamer.local.supervisor import Supervisor
from support.patience import PATIENCE_SECONDS
from support.processes import wait_until

# Writes its start, when it was asked to end, and its end; `deaf` goes on for ever, the others until TOGETHER have heard.
CHILD = """
import os, signal, sys, time
name, log = sys.argv[1:]
def heard():
    with open(log) as file:
        return sum(line[0].isalpha() for line in file)
def on_signal(number, frame):
    with open(log, "a") as file:
        file.write(f"{name}\\n")
    while name == "deaf" or heard() < int(os.environ.get("TOGETHER", "1")):
        time.sleep(0.01)
    with open(log, "a") as file:
        file.write(f"-{name}\\n")
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
    supervisor.shutdown_seconds = PATIENCE_SECONDS
    for name in names:
        supervisor.start(name, [name], {"TOGETHER": "4"})
    wait_until(lambda: len(order(tmp_path)) == 4, what="four processes")
    supervisor.stop()
    told = order(tmp_path)[4:]
    assert sorted(told[:4]) == names, "each was asked once, and all before the first one had ended"
    assert sorted(told[4:]) == [f"-{name}" for name in names], "none was killed"


def test_process_that_does_not_end_is_killed_when_its_deadline_has_passed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    for name in ("deaf", "retriever"):
        supervisor.start(name, [name])
    wait_until(lambda: len(order(tmp_path)) == 2, what="two processes")
    pid = supervisor.pid("deaf")
    assert pid is not None
    supervisor.stop()
    assert "-deaf" not in order(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_kill_ends_all_at_once_and_nothing_is_started_again(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.local.supervisor._FIRST_PAUSE_SECONDS", 0.0)
    for name in ("deaf", "indexer"):
        supervisor.start(name, [name])
    wait_until(lambda: len(order(tmp_path)) == 2, what="two processes")
    pids = [supervisor.pid(name) for name in ("deaf", "indexer")]
    supervisor.kill()
    wait_until(lambda: supervisor.pid("deaf") is None and supervisor.pid("indexer") is None, what="their end")
    for _ in range(3):
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
