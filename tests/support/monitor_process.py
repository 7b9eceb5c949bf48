"""Runs a monitor for the tests in a process of its own, without a bundle: settings and layout come as JSON in argv."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import numpy as np

from models.sids.layout import Layout
from streamer.monitor import process as monitor
from streamer.process.health import Health
from streamer.process.run import run_process
from streamer.settings import load_settings


def main() -> None:
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    settings = load_settings(**arguments["settings"])
    layout = Layout.from_dict(arguments["layout"])
    baseline = np.array(arguments["baseline"], dtype=np.int64)

    if not arguments["awaits_topics"]:  # as if they had been there a moment ago
        monitor.await_topics = lambda _settings, _names, stop, _health: not stop.is_set()

    def work(stop: threading.Event, health: Health) -> None:
        monitor.monitor_until_stopped(settings, layout, baseline, stop, health)

    run_process("monitor", settings, work)


if __name__ == "__main__":
    main()
