"""Log lines: whose they are, whatever thread and whichever library writes them."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, threading
import structlog
from streamer.process.logs import configure_logging
from streamer.settings import LoggingSettings

log = structlog.get_logger("ours")
configure_logging(LoggingSettings(format="json"), process="assigner", instance={instance!r})

def work(where):
    log.info("ours", where=where)
    logging.getLogger("library").warning("theirs")

work("main")
thread = threading.Thread(target=work, args=("thread",))
thread.start()
thread.join()
"""


def lines(instance: str) -> list[dict[str, str]]:
    script = SCRIPT.format(instance=instance)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stderr.splitlines()]


def test_every_line_of_every_thread_and_library_says_its_process_and_instance() -> None:
    found = lines("7")
    assert [line["event"] for line in found] == ["ours", "theirs", "ours", "theirs"]
    assert {(line["process"], line["instance"]) for line in found} == {("assigner", "7")}


def test_process_of_which_there_is_one_names_no_instance() -> None:
    assert all("instance" not in line and line["process"] == "assigner" for line in lines(""))
