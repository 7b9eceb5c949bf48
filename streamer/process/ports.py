"""A port that a process of ours is to serve on: free, or refused with the setting that names another."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import SidstreamError


class PortInUseError(SidstreamError):
    """Something else listens where a process of ours was told to; the message names the setting."""


@contextmanager
def refusing_a_taken_port(
    host: str, port: int, *, setting: str, purpose: str, may_be_off: bool = True
) -> Iterator[None]:
    """What cannot be bound inside raises ``PortInUseError``, which names what it is for and the ``setting`` to change;
    ``may_be_off``: whether 0 there switches it off."""
    try:
        yield
    except OSError as error:
        raise PortInUseError(
            f"{purpose} cannot be served on {host}:{port} ({error.strerror}): does another pipeline run here? "
            f"Choose another {setting}{', or 0 to switch it off' if may_be_off else ''}"
        ) from None


def require_free_port(host: str, port: int, *, setting: str, purpose: str, may_be_off: bool = True) -> None:
    """Return if ``port`` can be served on ``host``.

    Raises:
        PortInUseError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = refusing_a_taken_port(host, port, setting=setting, purpose=purpose, may_be_off=may_be_off)
    with socket.socket(family) as probe, taken:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a port in TIME_WAIT is free
        probe.bind((host, port))
