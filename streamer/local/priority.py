"""The priority of processes of a candidate's pipeline while it starts and catches up: whatever answers comes first.

What must hold: a process is given a low priority only where it can be given its own again, which takes a privilege that a
container's root and a service with `LimitNICE` have; elsewhere nothing is changed. It always gets a part of a busy machine.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

if sys.platform == "linux":
    import resource

LOWER_BY: Final = 10  # a tenth of the weight of others
_NICE_OF_LIMIT: Final = 20  # RLIMIT_NICE n lets nice go down to 20 - n


def may_change() -> bool:
    """Whether a low priority can be taken back."""
    if sys.platform != "linux":
        return False
    if os.geteuid() == 0:
        return True
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return soft == resource.RLIM_INFINITY or soft >= _NICE_OF_LIMIT - os.nice(0)


def give_way(pid: int, by: int = LOWER_BY) -> bool:
    """The process, which leads a session, comes after others by so much of nice; False if it leads none yet."""
    return _set(pid, os.nice(0) + by)


def take_part(pid: int) -> bool:
    """As all others again."""
    return _set(pid, os.nice(0))


def _set(pid: int, nice: int) -> bool:
    with suppress(OSError):  # it has ended; or root without the privilege: priority is a courtesy
        if os.getsid(pid) != pid:
            return False  # what is set here would be that of whoever forked it
        os.setpriority(os.PRIO_PGRP, pid, nice)
    # Linux weighs sessions against each other where autogroups are on, and nice inside of one.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
    return True
