"""How long a test waits for an event before it fails."""

from __future__ import annotations

from typing import Final

PATIENCE_SECONDS: Final = 300.0
"""The one limit of every wait, at least ten times what a quiet machine needs: it costs nothing when all is well.

A test waits for an event and never for time, and asserts no duration: a busy machine must not turn it red.
"""
