"""The end of a process: asked for once it has a deadline; asked for twice, or past the deadline, it ends at once.

What must hold: a signal is heard even while the main thread is stuck in a call of a library, so a thread of its own reads it.
Ending at once is always safe, as ``kill -9`` is safe at any moment.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

import structlog

from streamer.process.health import Health, Part

log = structlog.get_logger(__name__)

STUCK_STATUS: Final = 124
"""Exit status of a process that did not end within its deadline; that of timeout(1)."""

# The last resort needs neither the interpreter's lock nor its threads: it ends an interpreter that hangs while it takes itself
# apart, in the destructor of a client for instance. A library that never gives the lock back from the start hears no signal
# at all; its /live does not answer either, and whoever restarts it has SIGKILL.
_LAST_RESORT_SECONDS: Final = 3.0
_FRAMES_SHOWN: Final = 6


class Shutdown:
    """Sets ``stop`` on the first SIGTERM or SIGINT, ends the process on the second and when the deadline has passed.

    Args:
        deadline_seconds: from the first request to the end; what is stuck is logged when it has passed.
        health: not ready from the first request on, so that nobody sends more work.
        before_ending_at_once: what must not outlive this process, like children; must not block.
    """

    def __init__(
        self,
        stop: threading.Event,
        *,
        deadline_seconds: float,
        health: Health | None = None,
        before_ending_at_once: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop = stop
        self._deadline_seconds = deadline_seconds
        self._health = health
        self._before_ending_at_once = before_ending_at_once
        self._lock = threading.Lock()
        self._requested = False

    def listen(self) -> None:
        """Hear SIGTERM and SIGINT from now on; call it in the main thread."""
        ours, theirs = socket.socketpair()
        ours.setblocking(True)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(ours, theirs), name="signals", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _heard_by_the_thread)

    def request(self, **cause: str) -> bool:
        """Begin to end, whatever for; ``False`` when it has begun already. ``cause`` is logged."""
        with self._lock:
            if self._requested:
                return False
            self._requested = True
        log.info("stopping", deadline_s=self._deadline_seconds, **cause)
        if self._health is not None:
            self._health.set_unready(Part.STOPPING, "stopping")
        with contextlib.suppress(ValueError, OSError, AttributeError):  # standard error may be no file
            faulthandler.dump_traceback_later(self._deadline_seconds + _LAST_RESORT_SECONDS, exit=True)
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()
        self._stop.set()
        return True

    def _hear(self, ours: socket.socket, _theirs: socket.socket) -> None:
        """``_theirs`` is kept from being closed: the signal handler of the C library writes to it."""
        while numbers := ours.recv(16):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT) and not self.request(signal=signal.Signals(number).name):
                    log.warning("ended_at_once", signal=signal.Signals(number).name, reason="asked for twice")
                    self._end_at_once(128 + number)

    def _watch(self) -> None:
        time.sleep(self._deadline_seconds)
        log.error(
            "ended_at_deadline",
            deadline_s=self._deadline_seconds,
            in_hand=self._health.doing() if self._health is not None else [],
            stuck_in=_stacks(),
            next="nothing is lost: the next start goes on from what is committed",
        )
        self._end_at_once(STUCK_STATUS)

    def _end_at_once(self, status: int) -> None:
        try:
            self._before_ending_at_once()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)


def _heard_by_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Python's default would raise in the middle of a batch."""


def _stacks() -> dict[str, str]:
    """Where each thread that is not of this room stands, innermost call last: ``{name: "file:line function > …"}``."""
    frames = sys._current_frames()
    found = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or thread.name in ("signals", "deadline", "metrics", "supervisor-watch"):
            continue
        calls = traceback.extract_stack(frame)[-_FRAMES_SHOWN:]
        found[thread.name] = " > ".join(
            f"{call.filename.rsplit('/', 1)[-1]}:{call.lineno} {call.name}" for call in calls
        )
    return found
