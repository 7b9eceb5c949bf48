"""A directory that a person has named: made, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

from models.errors import SidstreamError


class DirectoryError(SidstreamError):
    """A directory cannot be made where it was asked for; says why."""


def make_directory(directory: Path) -> Path:
    """``directory``, with those above it, made where it is not there yet.

    Raises:
        DirectoryError: something else has the name, or this user may not write there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(
            f"{directory} cannot be made: {error.strerror or error}; name another directory"
        ) from error
    return directory
