"""Failpoints: nothing without the variable, ``kill -9`` at the passing that it names, and an unknown name is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from support.patience import PATIENCE_SECONDS

PASS_THREE_TIMES = """
from store.writing.failpoints import Failpoint, reach
for passing in (1, 2, 3):
    print(passing, flush=True)
    reach(Failpoint.OUTPUTS_SENT, lambda: print("flushed", flush=True))
    reach(Failpoint.BATCH_WRITTEN)
"""


def run(failpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIDSTREAM_FAILPOINT": failpoint}
    command = [sys.executable, "-c", PASS_THREE_TIMES]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


@pytest.mark.parametrize(
    ("failpoint", "said", "status"),
    [
        ("", ["1", "2", "3"], 0),
        ("outputs-sent=2", ["1", "2", "flushed"], -signal.SIGKILL),
        ("batch-written", ["1"], -signal.SIGKILL),
        ("batch-written=4", ["1", "2", "3"], 0),
    ],
)
def test_process_ends_at_the_passing_that_is_named_and_nowhere_else(
    failpoint: str, said: list[str], status: int
) -> None:
    ended = run(failpoint)
    assert (ended.stdout.split(), ended.returncode) == (said, status)


@pytest.mark.parametrize("failpoint", ["batch-writen", "batch-written=soon", "=1"])
def test_unknown_failpoint_is_refused_with_the_names_that_there_are(failpoint: str) -> None:
    ended = run(failpoint)
    assert ended.returncode == 1
    assert "counts-committed" in ended.stderr
