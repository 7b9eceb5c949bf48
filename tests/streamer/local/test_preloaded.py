"""A forked process behaves as one that was started by itself: output, exit status, environment, session, signals."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from streamer.local.preloaded import AVAILABLE, ForkedProcess
from support.patience import PATIENCE_SECONDS
from support.processes import free_port, preloading, wait_until

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="processes are forked on Linux alone")


@pytest.fixture(autouse=True)
def _server() -> None:
    preloading()


def test_forked_command_writes_to_its_log_and_ends_with_its_status(tmp_path: Path) -> None:
    log = tmp_path / "help.log"
    log.write_text("before\n")
    process = ForkedProcess(["--help"], os.environ, log)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert log.read_text().startswith("before\n")
    assert "retriever" in log.read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"SIDSTREAM_TOPICS__PARTITIONS": "0"}, "topics.partitions"), ({"SIDSTREAM_FAILPOINT": "nonsense"}, "nonsense")],
)
def test_forked_command_has_the_environment_it_was_given_and_fails_as_by_itself(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    log = tmp_path / "assigner.log"
    process = ForkedProcess(["assigner"], {**os.environ, **changes}, log)
    assert process.wait(PATIENCE_SECONDS) == 1
    assert named in log.read_text()
    assert not set(changes) & set(os.environ)


def test_forked_process_leads_its_session_is_named_and_dies_of_a_signal(tmp_path: Path) -> None:
    nobody = {"SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    process = ForkedProcess(["retriever"], {**os.environ, **nobody}, tmp_path / "retriever.log")
    name = Path(f"/proc/{process.pid}/comm")
    wait_until(lambda: name.read_text() == "retriever\n", what="the process' name")
    assert os.getsid(process.pid) == process.pid
    assert process.poll() is None
    process.kill()
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # to nobody
    assert sys.argv[1:] != ["retriever"], "nothing of it happened to us"
