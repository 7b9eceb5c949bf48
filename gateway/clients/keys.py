"""The file of clients: a table each, with the hash of its key, what it may do and how often. Read again when it changes.

What must hold: no key stands in the file or in a log; whether a key is known takes the same time for any key; a file that cannot
be used changes nothing, and is told of.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from models.errors import SidstreamError

log = structlog.get_logger(__name__)
Right = Literal["ask", "write"]
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_KEY_BYTES: Final = 32
_PREFIX: Final = "sid_"  # by which a key that got somewhere by mistake is found


class ClientsFileError(SidstreamError):
    """The file of clients cannot be used; the message names what in it."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client as the file has it. A client that is known by its certificate's name needs no key."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    rights: tuple[Right, ...] = ("ask",)
    requests_per_second: Annotated[float, Meta(ge=0)] | None = None
    burst: Annotated[int, Meta(ge=1)] | None = None


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A client: ``key_hash``: SHA-256 of its key, None if it has none; a rate of None is that of the settings."""

    name: str
    key_hash: bytes | None = None
    rights: frozenset[str] = frozenset({"ask"})
    requests_per_second: float | None = None
    burst: int | None = None


def read_clients(path: Path) -> Mapping[str, ClientRecord]:
    """The clients of a file, by name.

    Raises:
        ClientsFileError: names the file, the client and what is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ClientsFileError(
            f"the clients of the gateway cannot be read from {path}: {error}. `sidstream gateway --new-key NAME` says what "
            "such a file holds"
        ) from None
    found: dict[str, ClientRecord] = {}
    hashes: dict[bytes, str] = {}
    for name, table in tables.items():
        _require_name(name, path)
        try:
            entry = msgspec.convert(table, _Entry)
        except msgspec.ValidationError as error:
            raise ClientsFileError(
                f"{path}: the client {name!r} cannot be used ({error}): it has sha256 (64 hexadecimal digits), rights (ask, "
                "write), requests_per_second and burst"
            ) from None
        key_hash = None if entry.sha256 is None else bytes.fromhex(entry.sha256)
        if key_hash is not None and (other := hashes.setdefault(key_hash, name)) != name:
            raise ClientsFileError(f"{path}: the clients {other!r} and {name!r} have the same key: give each its own")
        found[name] = ClientRecord(
            name=name,
            key_hash=key_hash,
            rights=frozenset(entry.rights),
            requests_per_second=entry.requests_per_second,
            burst=entry.burst,
        )
    return found


def new_key_of(name: str) -> tuple[str, str]:
    """A key that nobody has, and the table of the file for it. Raises ``ClientsFileError`` for what is no name."""
    _require_name(name, "--new-key")
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, f'["{name}"]\nsha256 = "{hash_of(key).hex()}"\nrights = ["ask", "write"]\n'


def _require_name(name: str, where: object) -> None:
    if not _NAME.fullmatch(name):
        raise ClientsFileError(
            f"{where}: {name[:80]!r} is no name of a client: 1 to 64 letters, digits, _ . @ or -, the first a letter or digit"
        )


def hash_of(key: str) -> bytes:
    """What the file has of a key. Keys are random and long: a slow hash would protect nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class ClientsFile:
    """The clients of a file as it is now; ``look`` reads it again once it has changed."""

    def __init__(self, path: Path) -> None:
        """Raises ``ClientsFileError``."""
        self._path = path
        self._seen = self._stamp()
        self._clients = read_clients(path)

    def look(self) -> None:
        """Cheap; call it once a second."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._clients = read_clients(self._path)
        except ClientsFileError as error:
            log.error("clients_not_read", reason=str(error), next="the clients of before count; correct the file")
        else:
            log.info("clients_read", clients=len(self._clients))

    def _stamp(self) -> tuple[int, int, int]:
        try:
            now = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return now.st_mtime_ns, now.st_size, now.st_ino

    def of_key(self, key: str) -> ClientRecord | None:
        """Whose key it is. Every client is compared, and each in constant time."""
        given, found = hash_of(key), None
        for client in self._clients.values():
            if client.key_hash is not None and hmac.compare_digest(client.key_hash, given):
                found = client
        return found

    def named(self, name: str) -> ClientRecord | None:
        """The client of this name, as its certificate says it."""
        return self._clients.get(name)
