"""Functions run in a process of their own, so that the kernel counts the peak of their memory and of nothing else's."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from typing import Any

_MIB = 1024 * 1024


def in_process_of_its_own(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What the function returns, and the peak of resident memory in MiB; both the function and what it takes and gives are
    pickled.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, arguments, sending))
    process.start()
    sending.close()
    try:
        found, peak = receiving.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed; its process says why above") from None
    process.join()
    return found, peak


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], sending: Any) -> None:
    found = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sending.send((found, peak / _MIB))
