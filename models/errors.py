"""The root of every error that sidstream raises on purpose; its message says what happened, to what, and what to do."""

from __future__ import annotations


class SidstreamError(Exception):
    """A fault that a person can act on; the command line prints its message without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of what a library says of its error, for a message of ours; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
