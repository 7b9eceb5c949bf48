"""Log lines: whose they are, whatever thread and whichever library writes them."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, threading
import structlog
from streamer.process.logs import configure_logging
from streamer.settings.process import LoggingSettings

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


def test_line_has_the_trace_id_of_what_is_worked_on() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    script = (
        SCRIPT.format(instance="7")
        + f"""
from streamer.tracing.context import TraceContext, working_in

with working_in(TraceContext({parent.encode()!r})):
    work("traced")
"""
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = [json.loads(line).get("trace_id") for line in found.stderr.splitlines()]
    assert said == [None] * 4 + ["4bf92f3577b34da6a3ce929d0e0e4736"] * 2, "ours and the library's"


def test_process_of_which_there_is_one_names_no_instance() -> None:
    assert all("instance" not in line and line["process"] == "assigner" for line in lines(""))
