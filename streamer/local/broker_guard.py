"""Ends a process when its starter has died; run as ``python broker_guard.py STARTER_PID CHILD_PID``, standard library only.

The kernel's own "parent death signal" fires when the *thread* that started the child ends, and it would have to be set
between fork and exec of a threaded program; so a tiny process watches both instead. It ends by itself with the child.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

_GRACE_SECONDS = 15.0  # a clean stop of Kafka takes about a second
_POLL_SECONDS = 0.5


def watch(starter: int, child: int) -> None:
    """Return when ``child`` has ended; end it if ``starter`` ends first. Both are this process's parent and sibling."""
    if not hasattr(os, "pidfd_open"):
        _watch_by_polling(starter, child)
        return
    # A pidfd stays with its process: a number that is given to another process later does no harm.
    try:
        child_handle = os.pidfd_open(child)
    except ProcessLookupError:
        return
    with contextlib.suppress(ProcessLookupError):
        starter_handle = os.pidfd_open(starter)
        if os.getppid() == starter:
            ended, _, _ = select.select([starter_handle, child_handle], [], [])
            if child_handle in ended:
                return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(child_handle, signal.SIGTERM)
        if not select.select([child_handle], [], [], _GRACE_SECONDS)[0]:
            signal.pidfd_send_signal(child_handle, signal.SIGKILL)


def _watch_by_polling(starter: int, child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        while os.getppid() == starter:
            os.kill(child, 0)
            time.sleep(_POLL_SECONDS)
        os.kill(child, signal.SIGTERM)
        for _ in range(int(_GRACE_SECONDS / _POLL_SECONDS)):
            time.sleep(_POLL_SECONDS)
            os.kill(child, 0)
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
