"""The root of every error that sidstream raises on purpose; its message says what happened, to what, and what to do."""

from __future__ import annotations


class SidstreamError(Exception):
    """A fault that a person can act on; the command line prints its message without a traceback."""
