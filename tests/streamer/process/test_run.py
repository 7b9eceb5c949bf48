"""What every process shares: a thread that fails is told in the log's own form."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

_PROCESS = """
import threading
from streamer.process.run import run_process
from streamer.settings import load_settings

def work(stop, health):
    def fail():
        raise RuntimeError("the broker is away")
    if {ending}:
        stop.set()
    thread = threading.Thread(target=fail, name="a client's")
    thread.start()
    thread.join()

run_process("assigner", load_settings(logging={{"format": "json"}}), work)
"""


@pytest.mark.parametrize("ending", [False, True])
def test_thread_that_fails_is_a_json_line_as_all_others_and_without_a_traceback_while_the_process_ends(
    ending: bool,
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _PROCESS.format(ending=ending)], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in answer.stderr.splitlines()]
    (failed,) = [line for line in lines if line["event"] == "thread_failed"]
    assert failed["thread"] == "a client's"
    assert failed["process"] == "assigner"
    assert ("exception" in failed) is not ending
    assert "the broker is away" in json.dumps(failed)
    assert failed["level"] == ("info" if ending else "error")


def test_thread_that_ends_itself_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    from streamer.process.run import tell_of_thread

    tell_of_thread(threading.Event(), threading.ExceptHookArgs((SystemExit, SystemExit(), None, None)))
    assert capsys.readouterr() == ("", "")
