"""Functions run in a process of their own: for a result and the peak of their memory, or beside us until they are told to end."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_MIB = 1024 * 1024
_PATIENCE_SECONDS = 30.0


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


@contextmanager
def other_process(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process that runs ``work(pipe, *arguments)``, once it has said that it is ready."""
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    if not ours.poll(_PATIENCE_SECONDS):
        raise SystemExit(f"{work.__name__} did not start")
    ours.recv()
    yield ours
    process.join()
