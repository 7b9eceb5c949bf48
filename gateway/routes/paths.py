"""Ids in paths: any id may stand there percent-encoded, one with a slash as well."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

# Stands for a slash that is part of an id; no percent-encoding gives it.
_SLASH: Final = "\ud800"


def decoded_path(raw: bytes) -> str:
    """A request's path with what is encoded in it, but for slashes.

    >>> decoded_path(b"/items/a%20b/attributes")
    '/items/a b/attributes'
    """
    parts = raw.decode("latin-1").partition("?")[0].split("/")
    return "/".join(unquote(part, errors="surrogateescape").replace("/", _SLASH) for part in parts)


def id_of_path(part: str) -> bytes:
    """The id that a part of ``decoded_path`` is; not UTF-8 if it was not in the path."""
    return part.replace(_SLASH, "/").encode("utf-8", "surrogateescape")
